package daemon

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/page"
)

// browsers serves the page, where one is configured. Another program may have its address (any user can take a port above 1023),
// and that must not keep the daemon from its work: it does without the page then, and tries again when somebody asks for a link.
type browsers struct {
	page *page.Page

	mu      sync.Mutex
	address string // guarded by mu: where it is served; "": not yet
	closed  bool   // guarded by mu
}

func (d *Daemon) newBrowsers() *browsers {
	return &browsers{page: page.New(page.Options{API: d.pageAPI(), Log: d.log})}
}

// pageAPI are the services as the page may call them; which of their methods it may is the page's business.
func (d *Daemon) pageAPI() http.Handler {
	options := []connect.HandlerOption{
		connect.WithReadMaxBytes(maxMessage), connect.WithCompressMinBytes(worthIt), connect.WithRecover(d.recovered),
		connect.WithInterceptors(append(slices.Clone(d.opts.Interceptors), &edge{daemon: d}, connect.UnaryInterceptorFunc(withoutEnvironment))...),
	}
	mux := http.NewServeMux()
	mux.Handle(stasisv1connect.NewSystemServiceHandler(&systemService{daemon: d}, options...))
	mux.Handle(stasisv1connect.NewCheckpointServiceHandler(&checkpointService{daemon: d}, options...))
	if d.jobs != nil {
		mux.Handle(stasisv1connect.NewJobServiceHandler(d.jobs, options...))
	}
	return d.guard(d.gate(mux))
}

// withoutEnvironment leaves the environment of jobs out of what a browser gets: passwords are kept there.
func withoutEnvironment(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		response, err := next(ctx, request)
		if err != nil {
			return nil, err
		}
		if list, ok := response.(*connect.Response[v1.ListJobsResponse]); ok {
			list.Msg = proto.CloneOf(list.Msg) // the service keeps parts of it for others
			for _, j := range list.Msg.GetJobs() {
				if j.GetSpec() != nil {
					j.Spec.Environment = nil
				}
			}
		}
		return response, nil
	}
}

// start serves the page, unless it is served already or not configured, and gives its address.
func (b *browsers) start(d *Daemon) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case d.opts.Config.Daemon.Page == "":
		return "", fmt.Errorf("%w: the page is off: set daemon.page in %s, to 127.0.0.1:7070 for example, and start the daemon again",
			stasis.ErrConflict, d.opts.Config.Path())
	case b.closed:
		return "", fmt.Errorf("%w: the daemon is stopping", stasis.ErrConflict)
	case b.address != "":
		return b.address, nil
	}
	l, err := page.Listen(d.opts.Config.Daemon.Page)
	if err != nil {
		return "", fmt.Errorf("%w: %w: end what is there, or set daemon.page to another port", stasis.ErrConflict, err)
	}
	b.address = l.Addr().String()
	d.log.Info("serving the page", "address", b.address)
	go func() {
		if err := b.page.Serve(l); err != nil {
			d.log.Error("the page is not served any more", "error", err)
		}
	}()
	return b.address, nil
}

// served is the address at which the page is served, or "".
func (b *browsers) served() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.address
}

// close ends the page.
func (b *browsers) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return b.page.Close()
}

// Page gives a link to the page.
func (s *systemService) Page(ctx context.Context, _ *connect.Request[v1.PageRequest]) (*connect.Response[v1.PageResponse], error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	address, err := s.daemon.browsers.start(s.daemon)
	if err != nil {
		return nil, err
	}
	link, expires := s.daemon.browsers.page.Link(address, who)
	return connect.NewResponse(&v1.PageResponse{Url: link, Expires: timestamppb.New(expires)}), nil
}
