package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"stasis/internal/chain"
	"stasis/internal/image"
	"stasis/internal/pageserver"
	"stasis/internal/store"
)

// pageServerFlags are the flags of a page server.
type pageServerFlags struct {
	dir       string
	chain     chainFlags // of these, the parent and autoDedup
	lazyPages bool
	write     writeFlags

	address  string
	port     uint16
	psSocket int
	idle     time.Duration
	tls      bool
	anyName  bool
	files    pageserver.TLSFiles

	daemon   bool
	statusFD int
	pidFile  string
	logFile  string
	given    func(flag string) bool
}

func (a *app) pageServerCommand() *cobra.Command {
	f := &pageServerFlags{}
	cmd := &cobra.Command{
		Use:   "page-server --images-dir DIR --port PORT [flags]",
		Short: "Take the memory that CRIU's dump sends, into a checkpoint",
		Long: `Takes the memory that stock "criu dump --page-server" or "criu pre-dump --page-server" sends, compresses it and writes it to a
checkpoint in DIR. It serves one sender and ends. CRIU kills the dumped processes only when the checkpoint here is complete and on
the disk; whatever goes wrong makes CRIU's dump fail, its processes run on, and no checkpoint is left here.

What is received is memory alone. Copy the other images that CRIU made on its side to DIR, and "stasis import DIR" makes a checkpoint
of both that can be restored.

With --parent, pages that are as in that checkpoint are not stored again, whatever CRIU sends. With --prev-images-dir, or where DIR
has a link "parent" as CRIU makes it, CRIU is told besides that there is a parent, so that it does not send what did not change. Its
dump then needs a --prev-images-dir of its own and a kernel with soft-dirty tracking, and fails without.

With --lazy-pages it is the other way round: pages of the checkpoint in DIR are given to "criu lazy-pages --page-server".

It listens on this machine alone (127.0.0.1), unless told otherwise by --address. Without --tls, memory travels in clear text,
and whoever can connect can send memory that somebody may restore here: for another machine use --tls, where both sides show
certificates, or an SSH tunnel. A connection that says nothing of use is turned away, and does not keep the sender from its turn.`,
		Example: `  stasis page-server -D /srv/checkpoints/one --port 9876 --compression zstd
  criu dump -t 4711 -D /tmp/images --page-server --address 127.0.0.1 --port 9876`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.given = cmd.Flags().Changed
			return a.runPageServer(cmd.Context(), f)
		},
	}
	f.add(cmd)
	return cmd
}

func (f *pageServerFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&f.dir, "images-dir", "D", "", "`DIR` for the checkpoint, made where its parent exists")
	f.chain.addParent(cmd)
	flags.BoolVar(&f.chain.autoDedup, "auto-dedup", false, "give back the space of what the parent holds and this checkpoint replaces; the parent cannot be restored then")
	flags.BoolVar(&f.lazyPages, "lazy-pages", false, "give pages of the checkpoint to a lazy restore, and take none")
	f.write.addConfigured(cmd)
	flags.StringVar(&f.address, "address", "127.0.0.1", "`ADDRESS` to listen on; 0.0.0.0 or :: for all")
	flags.Uint16Var(&f.port, "port", 0, "`PORT` to listen on; 0 chooses a free one, and says which")
	flags.IntVar(&f.psSocket, "ps-socket", -1, "use the connection that is descriptor `FD` already, instead of --address and --port")
	flags.DurationVar(&f.idle, "idle-timeout", pageserver.DefaultIdle, "give up a sender that is silent for this `TIME`; 0 never does")
	flags.BoolVar(&f.tls, "tls", false, "encrypt, and let only senders in that have a certificate")
	flags.StringVar(&f.files.CACert, "tls-cacert", "", "`FILE` of the authorities that vouch for senders (default "+pageserver.DefaultCACert+")")
	flags.StringVar(&f.files.CACRL, "tls-cacrl", "", "`FILE` of revoked certificates (default "+pageserver.DefaultCACRL+", if there is one)")
	flags.StringVar(&f.files.Cert, "tls-cert", "", "`FILE` of the certificate of this server (default "+pageserver.DefaultCert+")")
	flags.StringVar(&f.files.Key, "tls-key", "", "`FILE` of its key (default "+pageserver.DefaultKey+")")
	flags.BoolVar(&f.anyName, "tls-no-cn-verify", false, "let the sender's certificate be for any name; without it, it must be for that of --address where that is given, as with CRIU")
	flags.BoolVarP(&f.daemon, "daemon", "d", false, "go on in the background as soon as it listens")
	flags.StringVar(&f.logFile, "log-file", "", "`FILE` for the messages of a daemon, relative to that of --images-dir (default page-server.log)")
	flags.StringVar(&f.pidFile, "pidfile", "", "write the server's process id to `FILE`, relative to that of --images-dir")
	flags.IntVar(&f.statusFD, "status-fd", -1, "write a zero byte to descriptor `FD` as soon as it listens, and close it")
	must(cmd.MarkFlagDirname("images-dir"))
}

func (a *app) runPageServer(ctx context.Context, f *pageServerFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	if f.daemon {
		return a.startPageServer(f)
	}
	options := pageserver.ServerOptions{Idle: f.idle, Note: func(peer string, why error) {
		fmt.Fprintf(a.err, "stasis: turned away %s: %v\n", peer, why)
	}}
	if f.tls {
		if f.given("address") && !f.anyName {
			f.files.Name = f.address
		}
		var err error
		if options.TLS, err = f.files.Config(); err != nil {
			return badInput("%w", err)
		}
	}
	if f.lazyPages {
		return a.servePages(ctx, f, options)
	}
	return a.receivePages(ctx, f, options)
}

// check finds flags that make no sense.
func (f *pageServerFlags) check() error {
	switch {
	case f.dir == "":
		return badInput("--images-dir is missing: give the folder for the checkpoint")
	case f.idle < 0:
		return badInput("--idle-timeout %v: it can't be negative", f.idle)
	case f.psSocket >= 0 && (f.given("address") || f.given("port")):
		return badInput("--ps-socket is a connection already: leave --address and --port out")
	case f.daemon && f.statusFD >= 0:
		return badInput("--daemon ends when the server listens, and --status-fd tells of the same: choose one")
	case f.daemon && f.psSocket >= 0:
		return badInput("--daemon can't take over the connection of --ps-socket: start it in the background by other means")
	case !f.tls && (f.files != pageserver.TLSFiles{} || f.anyName):
		return badInput("there are flags for TLS and --tls is missing: add it")
	case f.lazyPages && (f.chain != chainFlags{}):
		return badInput("--lazy-pages gives pages of a finished checkpoint: a parent and --auto-dedup are for taking them")
	}
	return nil
}

// inDir is where a file of CRIU's flags lies: relative to the folder of images.
func (f *pageServerFlags) inDir(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(f.dir, path)
}

// listen opens the socket, and tells whoever wants to know.
func (a *app) listen(f *pageServerFlags, encrypted bool) (net.Listener, error) {
	if f.psSocket >= 0 {
		file := os.NewFile(uintptr(f.psSocket), "--ps-socket")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			return nil, badInput("--ps-socket %d: this command has no connected socket of that number: %w", f.psSocket, err)
		}
		return pageserver.Single(conn), f.ready()
	}
	l, err := net.Listen("tcp", net.JoinHostPort(f.address, strconv.Itoa(int(f.port))))
	if err != nil {
		return nil, badInput("%w: choose another --address or --port", err)
	}
	if at, ok := l.Addr().(*net.TCPAddr); ok && !at.IP.IsLoopback() && !encrypted {
		fmt.Fprintf(a.err, "stasis: warning: memory travels to %v in clear text, and whoever can connect can send some: use --tls, or an SSH tunnel to 127.0.0.1\n", l.Addr())
	}
	if !a.quiet {
		fmt.Fprintf(a.err, "stasis: listening on %v\n", l.Addr())
	}
	if err := f.ready(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// ready writes the pid and the sign that connections are taken.
func (f *pageServerFlags) ready() error {
	if f.pidFile != "" {
		if err := os.WriteFile(f.inDir(f.pidFile), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
			return badInput("--pidfile: %w", err)
		}
	}
	if f.statusFD >= 0 {
		file := os.NewFile(uintptr(f.statusFD), "--status-fd")
		if _, err := file.Write([]byte{0}); err != nil {
			file.Close()
			return badInput("--status-fd %d: this command has no descriptor of that number to write to: %w", f.statusFD, err)
		}
		if err := file.Close(); err != nil {
			return badInput("--status-fd %d: %w", f.statusFD, err)
		}
	}
	return nil
}

// servedReport is the result for programs.
type servedReport struct {
	Dir      string `json:"dir"`
	Peer     string `json:"peer"`
	Requests int64  `json:"requests"`
	Pages    int64  `json:"pages"`
}

// servePages gives pages to one lazy restore.
func (a *app) servePages(ctx context.Context, f *pageServerFlags, server pageserver.ServerOptions) error {
	folder, err := store.OpenFolder(f.dir)
	if err != nil {
		return err
	}
	checkpoint, err := chain.OpenSource(folder, f.dir)
	if err != nil {
		return err
	}
	defer checkpoint.Close()
	l, err := a.listen(f, server.TLS != nil)
	if err != nil {
		return err
	}
	served, err := pageserver.Serve(ctx, l, pageserver.ServeOptions{ServerOptions: server, Checkpoint: checkpoint})
	if err != nil {
		return err
	}
	if a.output == outputJSON {
		return a.writeJSON(servedReport{folder.Name(), served.Peer, served.Requests, served.Pages})
	}
	if !a.quiet {
		fmt.Fprintf(a.out, "served %s (%s) in %s to %s\n", plural(int(served.Pages), "page"), inBytes(served.Pages*image.PageSize),
			plural(int(served.Requests), "request"), served.Peer)
	}
	return nil
}
