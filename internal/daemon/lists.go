package daemon

import (
	"encoding/base64"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/internal/catalog"
	"stasis/internal/image"
	"stasis/internal/peer"
	"stasis/internal/ready"
	"stasis/internal/wire"
)

// lists keeps the messages of a list ready, as long as the list stays the same.
type lists struct {
	ready ready.Answers[question]

	mu       sync.Mutex
	of       []*catalog.Entry                  // guarded by mu: what the rest was made of
	lengths  map[*catalog.Entry]int32          // guarded by mu
	messages map[*catalog.Entry]*v1.Checkpoint // guarded by mu: those that were asked for so far; nobody changes them
}

// forLocked makes everything ready for a list.
func (l *lists) forLocked(list []*catalog.Entry) {
	if len(list) == len(l.of) && (len(list) == 0 || &list[0] == &l.of[0]) && l.messages != nil {
		return
	}
	l.of, l.lengths, l.messages = list, wire.ChainLengths(list), make(map[*catalog.Entry]*v1.Checkpoint)
}

func (l *lists) chainLength(list []*catalog.Entry, e *catalog.Entry) int32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forLocked(list)
	return max(l.lengths[e], 1)
}

func (l *lists) message(e *catalog.Entry) *v1.Checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.messages[e]
	if m == nil {
		m = wire.Checkpoint(e)
		m.ChainLength = max(l.lengths[e], 1)
		l.messages[e] = m
	}
	return m
}

// question is all on which a page depends, beside the checkpoints.
type question struct {
	uid   uint32
	size  int
	token string
	kind  v1.CheckpointKind
	job   string
	noJob bool
	owned bool // by owner alone
	owner uint32
}

// longestWord bounds what is kept of a question.
const longestWord = 4096

// answer gives one page of the checkpoints that somebody may see.
func (l *lists) answer(c *catalog.Catalog, who peer.Peer, q *v1.ListCheckpointsRequest, size int) (*v1.ListCheckpointsResponse, error) {
	list, generation := c.Look()
	asked := question{who.UID, size, q.GetPageToken(), q.GetKind(), q.GetJob(), q.GetNoJob(), q.OwnerUid != nil, q.GetOwnerUid()}
	if kept, ok := l.ready.Get(asked, generation).(*v1.ListCheckpointsResponse); ok {
		return kept, nil
	}
	watched := false
	response, err := l.page(list, who, q, size, func(some []*catalog.Entry) { watched = c.Watch(some) }, c.Fresh)
	if err == nil && watched && len(asked.token)+len(asked.job) <= longestWord {
		l.ready.Put(asked, generation, response)
	}
	return response, err
}

// page picks one page out of all checkpoints. before is told of those of the page before fresh looks at each, whether it is still as it was; it
// gives nil for one that is gone, and another takes its place.
func (l *lists) page(list []*catalog.Entry, who peer.Peer, q *v1.ListCheckpointsRequest, size int,
	before func([]*catalog.Entry), fresh func(*catalog.Entry) *catalog.Entry,
) (*v1.ListCheckpointsResponse, error) {
	l.mu.Lock()
	l.forLocked(list)
	l.mu.Unlock()
	kind, err := kindOf(q.GetKind())
	if err != nil {
		return nil, err
	}
	if q.GetNoJob() && q.GetJob() != "" {
		return nil, fmt.Errorf("%w: no_job and job %q: choose one", stasis.ErrInput, q.GetJob())
	}
	if !who.Root() || kind != "" || q.GetJob() != "" || q.GetNoJob() || q.OwnerUid != nil {
		list = slices.DeleteFunc(slices.Clone(list), func(e *catalog.Entry) bool {
			return !who.May(e.Owner) || kind != "" && e.Manifest.Kind != kind || q.GetJob() != "" && e.Job != q.GetJob() ||
				q.GetNoJob() && e.Job != "" || q.OwnerUid != nil && e.Owner != q.GetOwnerUid()
		})
	}
	response := &v1.ListCheckpointsResponse{Total: int32(len(list))} //nolint:gosec // no disk holds so many
	from := 0
	if q.GetPageToken() != "" {
		after, err := parseToken(q.GetPageToken())
		if err != nil {
			return nil, err
		}
		from = sort.Search(len(list), func(i int) bool { return after.before(list[i]) })
	}
	before(list[from:min(len(list), from+size)])
	for i := from; i < len(list); i++ {
		if len(response.Checkpoints) == size {
			response.NextPageToken = tokenOf(list[i-1])
			break
		}
		if e := fresh(list[i]); e != nil {
			response.Checkpoints = append(response.Checkpoints, l.message(e))
		}
	}
	return response, nil
}

func kindOf(k v1.CheckpointKind) (string, error) {
	switch k {
	case v1.CheckpointKind_CHECKPOINT_KIND_UNSPECIFIED:
		return "", nil
	case v1.CheckpointKind_CHECKPOINT_KIND_FULL:
		return image.KindFull, nil
	case v1.CheckpointKind_CHECKPOINT_KIND_PRE_DUMP:
		return image.KindPreDump, nil
	}
	return "", fmt.Errorf("%w: kind %d is not known here: is the client newer than the daemon?", stasis.ErrInput, k)
}

// token is where a page ended: it holds when checkpoints are made or deleted meanwhile.
type token struct {
	created time.Time
	dir     string
}

func tokenOf(e *catalog.Entry) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(e.Manifest.Created.UnixNano(), 10) + " " + e.Dir))
}

func parseToken(text string) (token, error) {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	number, dir, ok := strings.Cut(string(raw), " ")
	nanos, numberErr := strconv.ParseInt(number, 10, 64)
	if err != nil || !ok || numberErr != nil {
		return token{}, fmt.Errorf("%w: page_token is not one that a list gave", stasis.ErrInput)
	}
	return token{created: time.Unix(0, nanos), dir: dir}, nil
}

// before says whether a checkpoint comes after where the page ended.
func (t token) before(e *catalog.Entry) bool {
	if c := e.Manifest.Created.Compare(t.created); c != 0 {
		return c < 0
	}
	return e.Dir < t.dir
}
