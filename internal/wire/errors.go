package wire

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/internal/catalog"
	"stasis/internal/image"
	"stasis/internal/store"
)

// ErrDenied: the caller has no right to do that.
var ErrDenied = errors.New("permission denied")

// ErrLimit: too much is under way already; try again later.
var ErrLimit = errors.New("too much at once")

// ErrUnknown: what was named is not there, or the caller may not see it.
var ErrUnknown = errors.New("not found")

// kinds says which code and kind an error has. The first that an error is counts.
var kinds = []struct {
	is   error
	code connect.Code
	kind string
}{
	{ErrDenied, connect.CodePermissionDenied, "denied"},
	{ErrLimit, connect.CodeResourceExhausted, "failure"},
	{stasis.ErrDamaged, connect.CodeDataLoss, "damaged"},
	{store.ErrExists, connect.CodeAlreadyExists, "conflict"},
	{stasis.ErrConflict, connect.CodeFailedPrecondition, "conflict"},
	{stasis.ErrBusy, connect.CodeFailedPrecondition, "conflict"},
	{store.ErrBusy, connect.CodeFailedPrecondition, "conflict"},
	{ErrUnknown, connect.CodeNotFound, "input"},
	{catalog.ErrUnknown, connect.CodeNotFound, "input"},
	{store.ErrNoCheckpoint, connect.CodeNotFound, "input"},
	{stasis.ErrInput, connect.CodeInvalidArgument, "input"},
	{context.Canceled, connect.CodeCanceled, "failure"},
	{context.DeadlineExceeded, connect.CodeDeadlineExceeded, "failure"},
	{stasis.ErrProcess, connect.CodeFailedPrecondition, "process"},
}

// Error gives an error the code of its kind, and a Failure as its detail. nil stays nil, and a *connect.Error as it is.
func Error(err error) error {
	if err == nil {
		return nil
	}
	if ready := (*connect.Error)(nil); errors.As(err, &ready) {
		return err
	}
	code, kind := codeOf(err)
	made := connect.NewError(code, err)
	if detail, detailErr := connect.NewErrorDetail(&v1.Failure{Kind: kind, Step: string(stasis.FailedStep(err)), Damage: Damages(err)}); detailErr == nil {
		made.AddDetail(detail)
	}
	return made
}

func codeOf(err error) (connect.Code, string) {
	for _, k := range kinds {
		if errors.Is(err, k.is) {
			return k.code, k.kind
		}
	}
	damage, version := (*image.DamageError)(nil), (*image.VersionError)(nil)
	if errors.As(err, &damage) || errors.As(err, &version) {
		return connect.CodeDataLoss, "damaged"
	}
	return connect.CodeInternal, "failure"
}

// Damages lists the damaged places that an error tells of, be it of this process or of the daemon.
func Damages(err error) []*v1.Damage {
	var list []*v1.Damage
	switch e := err.(type) { //nolint:errorlint // this is the walk itself: every one of the tree is wanted, not the first
	case *image.DamageError:
		return []*v1.Damage{{Checkpoint: e.Checkpoint, File: e.Shard, Offset: e.Offset, Why: e.Why}}
	case *remote:
		return e.failure.GetDamage()
	case interface{ Unwrap() error }:
		list = Damages(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			list = append(list, Damages(inner)...)
		}
	}
	return list
}

// remote is an error of the daemon, in the client.
type remote struct {
	text    string
	kind    error
	failure *v1.Failure
	err     *connect.Error
}

func (e *remote) Error() string { return e.text }

func (e *remote) Unwrap() []error {
	if e.kind == nil {
		return []error{e.err}
	}
	return []error{e.kind, e.err}
}

// FromError makes an error of the daemon one of the library's kinds again, so that callers need not know where the work was done.
// Other errors stay as they are.
func FromError(err error) error {
	var c *connect.Error
	if !errors.As(err, &c) || !connect.IsWireError(err) {
		return err
	}
	e := &remote{text: c.Message(), err: c}
	for _, d := range c.Details() {
		if value, err := d.Value(); err == nil {
			if failure, ok := value.(*v1.Failure); ok {
				e.failure = failure
			}
		}
	}
	switch e.failure.GetKind() {
	case "damaged":
		e.kind = stasis.ErrDamaged
	case "conflict":
		e.kind = stasis.ErrConflict
	case "input":
		e.kind = stasis.ErrInput
	case "process":
		e.kind = stasis.ErrProcess
	case "denied":
		e.kind = ErrDenied
	}
	if c.Code() == connect.CodeUnimplemented {
		e.text = fmt.Sprintf("the daemon cannot do that: %s; is it older than this program? Stop it with \"stasis daemon stop\"", c.Message())
	}
	return e
}

// FailureOf gives the details of an error of the daemon, or nil.
func FailureOf(err error) *v1.Failure {
	if e := (*remote)(nil); errors.As(err, &e) {
		return e.failure
	}
	return nil
}
