package daemon

import (
	"context"

	"connectrpc.com/connect"

	"stasis/api/stasis/v1/stasisv1connect"
)

// Jobs are the jobs that a daemon looks after. Their service finds out by [peer.From] who calls, and lets everybody but root see and
// touch only what is their own; the daemon itself has only seen to it that the peer may call at all. An error that is no
// *connect.Error is turned into one by its kind (wire.Error).
type Jobs interface {
	stasisv1connect.JobServiceHandler

	// Options are those with which the service wants to be served, beside the daemon's own.
	Options() connect.HandlerOption
	// Counts gives the number of jobs of a user (of all for user 0), and of those that run. It is called often and has to be cheap.
	Counts(uid uint32) (all, running int)
	// Needed says whether the daemon has to stay for the jobs: one runs, or waits to be brought back.
	Needed() bool
	// Close ends the work on jobs, which run on, as the context's deadline allows: it makes the checkpoints that the configuration
	// asks for on SIGTERM. No call is under way any more.
	Close(ctx context.Context) error
}
