package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"stasis"
	"stasis/internal/jobs/db"
)

// Options says where a manager works and how. The folders and the database are needed.
type Options struct {
	Database    string // path of the database
	Dir         string // folder of the shims' folders, with the logs
	Checkpoints string // folder of the checkpoints, as the catalog has it

	Parallel     int           // dumps and restores at once; 0: half of the CPUs
	MaxRetries   int           // attempts in a row to bring a job back; 0: 5
	RestartDelay time.Duration // before the second attempt in a row, doubles with each; 0: a second
	Keep         db.Keep       // for jobs that do not say it themselves
	MaxChain     int           // likewise; 0: 32
	DumpOnStop   bool          // Close makes a checkpoint of each job
	GoingDown    func() bool   // asked by Close: the whole machine is going down; nil: it is not
	LogBytes     int64         // that are kept of a job's output; 0: 64 MiB
	MaxJobs      int           // of one user but root, since each has a process of root's beside it; 0: 256
	CRIUPath     string        // "": the first that is new enough

	Engine Engine       // nil: the library
	Runner Runner       // nil: real processes
	Log    *slog.Logger // nil: none

	Now func() time.Time // the machine's clock, which may be set while schedules wait; nil: time.Now
}

// Defaults of Options.
const (
	defaultRetries  = 5
	defaultDelay    = time.Second
	defaultMaxChain = 32
	defaultLogBytes = 64 << 20
	defaultMaxJobs  = 256
)

// What callers can act on, beside the kinds of package stasis.
var (
	ErrUnknown = errors.New("no such job")
	ErrExists  = errors.New("there is a job of that name")
	ErrState   = errors.New("the job is not in a state for that")
	ErrTooMany = errors.New("too many jobs")
)

// Manager holds the jobs of a machine.
type Manager struct {
	o     Options
	db    *db.DB
	log   *slog.Logger
	slots chan struct{} // one for each dump or restore under way

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // goroutines of jobs

	mu     sync.RWMutex
	jobs   map[string]*job // by name
	closed bool

	generation atomic.Uint64 // grows with every change of what List gives

	news news // tells of new events
}

// Open takes up all jobs: those that run are watched again, those that ended meanwhile are brought back as their policy says. A database
// that is damaged is set aside; what it lacks is read from beside the checkpoints.
func Open(ctx context.Context, o Options) (*Manager, error) {
	if o.Parallel <= 0 {
		o.Parallel = max(1, runtime.NumCPU()/2)
	}
	o.MaxRetries = cmp.Or(o.MaxRetries, defaultRetries)
	o.RestartDelay = cmp.Or(o.RestartDelay, defaultDelay)
	o.MaxChain = cmp.Or(o.MaxChain, defaultMaxChain)
	o.MaxJobs = cmp.Or(o.MaxJobs, defaultMaxJobs)
	if o.Engine == nil {
		o.Engine = Library{}
	}
	if o.Runner == nil {
		o.Runner = processes{keep: cmp.Or(o.LogBytes, defaultLogBytes)}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{filepath.Dir(o.Database), o.Dir, o.Checkpoints} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make a folder for jobs: %w", err)
		}
	}
	database, contents, damage, err := openDatabase(&o)
	if err != nil {
		return nil, err
	}
	m := &Manager{o: o, db: database, log: o.Log, slots: make(chan struct{}, o.Parallel), jobs: make(map[string]*job)}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if damage != "" {
		m.event(db.Event{Kind: EventRebuilt, Text: damage})
	}
	if err := m.takeUp(ctx, contents); err != nil {
		m.cancel()
		m.work.Wait()
		return nil, errors.Join(err, database.Close())
	}
	return m, nil
}

// openDatabase opens the database, or a new one where it is damaged; damage says so.
func openDatabase(o *Options) (d *db.DB, c *db.Contents, damage string, err error) {
	if d, c, err = db.Open(o.Database); !errors.Is(err, db.ErrDamaged) {
		return d, c, "", err
	}
	aside, asideErr := db.SetAside(o.Database, time.Now())
	if asideErr != nil {
		return nil, nil, "", errors.Join(err, asideErr)
	}
	damage = fmt.Sprintf("the database was damaged and is made anew from the checkpoints; the old one is %s now (%v)", aside, err)
	o.Log.Error("the database was damaged", "error", err, "set aside as", aside)
	d, c, err = db.Open(o.Database)
	return d, c, damage, err
}

// takeUp makes the jobs of what the database and the folders say.
func (m *Manager) takeUp(ctx context.Context, contents *db.Contents) error {
	known := make(map[string]bool)
	for _, rec := range contents.Jobs {
		known[rec.Spec.Name] = true
		m.add(rec, contents.Checkpoints[rec.Spec.Name])
	}
	found, err := m.findJobs(known)
	if err != nil {
		return err
	}
	for _, rec := range found {
		j := m.add(rec, nil)
		j.event(EventRebuilt, "the job was not in the database and is known from its checkpoints again")
	}
	for _, j := range m.list() {
		j.reconcile()
	}
	// Shims answer at once, but two hundred of them one after the other would take their time.
	var asked sync.WaitGroup
	for _, j := range m.list() {
		asked.Go(func() { j.adopt(ctx) })
	}
	asked.Wait()
	return ctx.Err()
}

// add makes a job of a record.
func (m *Manager) add(rec db.Job, cps []db.Checkpoint) *job {
	j := newJob(m, rec, cps)
	m.mu.Lock()
	m.jobs[rec.Spec.Name] = j
	m.generation.Add(1)
	m.mu.Unlock()
	m.work.Go(j.keepTime)
	return j
}

// find finds a job by its name, its id, or an unambiguous beginning of the id.
func (m *Manager) find(name string) (*job, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if j, ok := m.jobs[name]; ok {
		return j, nil
	}
	var found *job
	for _, j := range m.jobs {
		if id := j.rec.ID; name != "" && strings.HasPrefix(id, name) { // the id never changes
			if found != nil {
				return nil, fmt.Errorf("%w: %q begins the ids of several: give more of it", stasis.ErrInput, name)
			}
			found = j
		}
	}
	if found == nil {
		return nil, unknown(name)
	}
	return found, nil
}

// unknown is the error about a job that is not there, or that does not exist for who asks.
func unknown(name string) error {
	return fmt.Errorf("%w: %s: \"stasis ps\" lists them all", ErrUnknown, name)
}

// Visible is a job that a user may see.
func (m *Manager) Visible(name string, user uint32) (Info, error) {
	j, err := m.find(name)
	if err != nil {
		return Info{}, err
	}
	if !j.mayBeSeenBy(user) {
		return Info{}, unknown(name)
	}
	return j.info(), nil
}

// list lists the jobs, the newest first.
func (m *Manager) list() []*job {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]*job, 0, len(m.jobs))
	for _, j := range m.jobs {
		all = append(all, j)
	}
	slices.SortFunc(all, func(a, b *job) int { // created and id never change
		return cmp.Or(b.rec.Created.Compare(a.rec.Created), strings.Compare(b.rec.ID, a.rec.ID))
	})
	return all
}

// Info is a job as it stands.
type Info struct {
	db.Job
	Revision    uint64 // of the spec: grows when it is changed
	Dumping     bool
	Checkpoints int
	Bytes       int64          // that its checkpoints take
	Last        *db.Checkpoint // its newest good one
	Next        time.Time      // when the next one is due; zero: never
}

// Generation tells one answer of List from the next: as long as it stays the same, so does what List gives. A change that somebody has been
// told of has a new one.
func (m *Manager) Generation() uint64 { return m.generation.Load() }

// List gives the jobs of a user, or of all for user 0, the newest first.
func (m *Manager) List(user uint32) []Info {
	list := m.list()
	infos := make([]Info, 0, len(list))
	for _, j := range list {
		if j.mayBeSeenBy(user) {
			infos = append(infos, j.info())
		}
	}
	return infos
}

// Get describes one job.
func (m *Manager) Get(name string) (Info, error) {
	j, err := m.find(name)
	if err != nil {
		return Info{}, err
	}
	return j.info(), nil
}

// Counts gives the number of jobs of a user (of all for user 0), and of those that are alive.
func (m *Manager) Counts(user uint32) (all, alive int) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, j := range m.jobs {
		if !j.mayBeSeenBy(user) {
			continue
		}
		all++
		if j.shown.Load().State == db.StateRunning {
			alive++
		}
	}
	return all, alive
}

// Needed says whether somebody has to look after the jobs: one runs, or waits to be brought back.
func (m *Manager) Needed() bool {
	for _, j := range m.list() {
		switch j.state() {
		case db.StateDone, db.StateFailed, db.StateKilled, db.StateSuspended:
		default:
			return true
		}
	}
	return false
}

// Checkpoints lists a job's checkpoints, the oldest first.
func (m *Manager) Checkpoints(name string) ([]db.Checkpoint, error) {
	j, err := m.find(name)
	if err != nil {
		return nil, err
	}
	j.mu.RLock()
	defer j.mu.RUnlock()
	return slices.Clone(j.cps), nil
}

// Close lets go of all jobs, which run on. Where the options say so it makes a checkpoint of each first, as far as the context allows. When
// the machine is going down, which no job outlives, each is ended with its checkpoint: what it wrote to its files after that would keep it
// from being restored. The next manager brings back those whose policy says so.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	if m.o.DumpOnStop {
		e := evacuation{reason: ReasonStop, after: stasis.AfterRun}
		if m.o.GoingDown != nil && m.o.GoingDown() {
			e = evacuation{reason: ReasonShutdown, after: stasis.AfterKill}
		}
		m.evacuate(ctx, m.list(), e, nil)
	}
	m.cancel()
	m.news.close()
	m.work.Wait()
	return m.db.Close()
}

// slot waits for the right to dump or restore.
func (m *Manager) slot(ctx context.Context) (release func(), err error) {
	select {
	case m.slots <- struct{}{}:
		return func() { <-m.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// checkpointDir is the folder of a job's checkpoints.
func (m *Manager) checkpointDir(owner uint32, name string) string {
	if owner == 0 {
		return filepath.Join(m.o.Checkpoints, "jobs", name)
	}
	return filepath.Join(m.o.Checkpoints, "users", strconv.FormatUint(uint64(owner), 10), "jobs", name)
}

func (m *Manager) shimDir(name string) string { return filepath.Join(m.o.Dir, name) }
