package deliver

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

const (
	giveUp        = 24 * time.Hour // after the first attempt no later one is planned (RFC 8460, 5.5)
	maxRetryAfter = 4 * time.Hour  // for which a receiver can have us wait
)

// pauses are those before the retries; the last one is repeated.
var pauses = [...]time.Duration{10 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour}

// Errors that Config.Mail and Config.Post wrap.
var (
	ErrRefused = errors.New("refused")                     // an answer that will not change
	ErrNoMTA   = errors.New("our own MTA does not answer") // whoever the mail is for
)

// A LaterError is a failure of a receiver that says when to try again.
type LaterError struct {
	After time.Duration
	Err   error
}

func (e *LaterError) Error() string { return e.Err.Error() }

// Unwrap returns the underlying error.
func (e *LaterError) Unwrap() error { return e.Err }

// begun returns a row as it is on disk during an attempt. A process that ends during
// the attempt tries again after the pause.
func begun(row tlsrpt.State, now time.Time) tlsrpt.State {
	if row.Attempts++; row.Begun.IsZero() {
		row.Begun = now
	}
	row.Kind, row.Changed = tlsrpt.Attempting, now
	row.Next = now.Add(pauses[min(row.Attempts, len(pauses))-1])
	return row
}

// failed returns a begun row after an attempt that failed.
func failed(row tlsrpt.State, err error, now time.Time) tlsrpt.State {
	row.Kind, row.Changed, row.Reason = tlsrpt.Planned, now, reason(err)
	row.Next = now.Add(pauses[min(row.Attempts, len(pauses))-1])
	if later, ok := errors.AsType[*LaterError](err); ok {
		if at := now.Add(min(later.After, maxRetryAfter)); at.After(row.Next) {
			row.Next = at
		}
	}
	switch {
	case errors.Is(err, errNoRecord):
		row.Kind = tlsrpt.Suppressed
	case errors.Is(err, ErrRefused):
		row.Kind, row.Reason = tlsrpt.Refused, strings.TrimPrefix(row.Reason, ErrRefused.Error()+": ")
	case row.Next.After(row.Begun.Add(giveUp)):
		row.Kind = tlsrpt.Expired
	}
	return row
}

// closed returns a row for which nothing more is done.
func closed(row tlsrpt.State, kind tlsrpt.StateKind, why string) tlsrpt.State {
	row.Kind, row.Reason, row.Changed = kind, why, time.Now()
	return row
}

// concluded returns a domain's own row, the first: closed if the rows of all destinations
// are, and accepted if one of them is (RFC 8460, 3).
func concluded(rows []tlsrpt.State) tlsrpt.State {
	own, rows := rows[0], rows[1:]
	if len(rows) == 0 || slices.ContainsFunc(rows, func(row tlsrpt.State) bool { return row.Kind.Open() }) {
		return own
	}
	for _, kind := range []tlsrpt.StateKind{tlsrpt.Accepted, tlsrpt.Expired, tlsrpt.Refused} {
		if i := slices.IndexFunc(rows, func(row tlsrpt.State) bool { return row.Kind == kind }); i >= 0 {
			return closed(own, kind, rows[i].Reason)
		}
	}
	return closed(own, tlsrpt.Suppressed, "no destination is left")
}

// reason is an error as a row keeps it.
func reason(err error) string { return text.Cut(text.Printable(err.Error()), maxReasonText) }
