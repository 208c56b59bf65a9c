// Package cache keeps MTA-STS policies in one bbolt file: lookup and write, the
// order in which policies are due for a refresh, a bounded size, and the salvage
// of a damaged file. It knows the mode and the life of a policy. It does not fetch
// policies, and it does not render replies.
package cache

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// A Record is a policy that was fetched over HTTPS, and what is known about it.
// Times are stored in whole seconds; a zero time stays zero.
type Record struct {
	Domain    string // the policy domain: A-labels, lower case, no trailing dot
	ID        string // the id of the TXT record that goes with Text; empty: none was seen
	PendingID string // a new id under which the text was still the old one (RFC 8461, 8.1); empty: none
	Mode      policy.Mode
	Text      []byte // the policy as served
	Match     []byte // the stored match list; its first byte is the version of the caller's rule

	Fetched time.Time // when Text was last fetched
	Expires time.Time // Fetched plus max_age
	Checked time.Time // when the TXT record was last seen
	Used    time.Time // the last known use; zero: never
	Regular bool      // used on two days or more

	FetchAt       time.Time // when the policy is next fetched, if it was used since Fetched
	FetchUnusedAt time.Time // when it is next fetched, if it was not
	Unattended    uint8     // scheduled fetches in a row without a use; at most MaxUnattended

	Failures  uint32    // failed fetches in a row
	FailedAt  time.Time // when the last one failed; zero: none did
	LastError string    // why; printable
	Slow      bool      // the last fetch succeeded, but took long

	Lane Lane      // where the record waits for Due
	Due  time.Time // when the refresher looks at it next; zero: never

	NotOnDisk string // why it is not stored: the keeper says so of a record that only memory has
}

// A Lane is a queue of records that wait for the refresher.
type Lane uint8

// The lanes. Records written by versions before 1.0 have lanes 1 to 7: they are
// read as LaneNormal and LaneTroubled.
const (
	LaneQuiet    Lane = 0 // waits to be deleted, not to be fetched
	LaneNormal   Lane = 8
	LaneTroubled Lane = 9 // the last fetch failed or was slow
)

// Limits of a record.
const (
	MaxDomain     = 253     // bytes of a policy domain
	MaxID         = 255     // bytes of an id; RFC 8461, 3.1, allows 32
	MaxLastError  = 512     // bytes of LastError; a longer one is cut
	MaxValue      = 1 << 20 // bytes of a stored record
	MaxUnattended = 15      // a higher count is stored as this
)

// MaxPage is the most records that List and Due return.
const MaxPage = 1000

// A Hit is the part of a stored policy that a lookup needs. Times are Unix
// seconds; 0 is never. A Hit may be used for one lookup after another: Match and
// Text are buffers that the next lookup overwrites.
type Hit struct {
	Mode    policy.Mode
	Fetched int64
	Expires int64
	Checked int64
	Used    int64
	Match   []byte // the stored match list
	Text    []byte // the policy as served
}

// A Due is a record that is due for the refresher.
type Due struct {
	Domain  string
	Due     time.Time
	Expires time.Time // the end of the policy's life; a guess if the record is damaged
}

// An Op is one change: a record to store, or a domain to delete.
type Op struct {
	Put    *Record
	Delete string
}

func (op Op) domain() string {
	if op.Put != nil {
		return op.Put.Domain
	}
	return op.Delete
}

// A WriteResult lists the domains that a full store lost or refused.
type WriteResult struct {
	Refused []string // no room: no policy of these domains is stored now
	Evicted []string // deleted to make room for others
}

// Stats are counts of what the store holds and has seen.
type Stats struct {
	ByMode       [policy.ModeEnforce + 1]int64 // policies by mode; unreadable modes at 0
	Heartbeat    time.Time                     // Options.Now at the last commit; right after Open, that of the previous run
	InDoubtSince time.Time                     // Options.InDoubtSince at that commit
	UsedSize     int64                         // bytes of used pages
	FileSize     int64                         // bytes of the file, free pages included
	MaxSize      int64                         // the limit of UsedSize
	Damaged      uint64                        // damaged records met since Open
	Unreadable   uint64                        // faults met since Open
	Files        uint64                        // files used since Open: another may hold other policies
	Salvage      *Report                       // the last salvage, nil: none since Open
	Salvaging    bool                          // a file is still being read for records; a domain not read yet is ErrUnreadable
	MemoryOnly   error                         // why the store is a file in memory; nil: it is on disk
}

// Policies returns the number of policies.
func (s Stats) Policies() int64 {
	var n int64
	for _, m := range s.ByMode {
		n += m
	}
	return n
}

// A Report says what became of a damaged file, or of one from a newer program.
type Report struct {
	Why       error  `json:"-"` // what was wrong with the file
	MovedTo   string // where the file is now; empty: it could not be moved
	Recovered int    // policies carried over
	Damaged   int    // policies held but not readable: their lookups are TEMP until they are fetched again
	Lost      int    // enforced policies in the file's count that were not found; -1: not known
}

// Advice says how to bring back a file of a newer program; empty for any other.
func (r *Report) Advice() string {
	var newer *SchemaError
	if !errors.As(r.Why, &newer) || r.MovedTo == "" {
		return ""
	}
	return fmt.Sprintf("to go back, stop the daemon, install the newer program, and move %s to %s", r.MovedTo, newer.Path)
}

// Errors of a store.
var (
	// ErrNotFound: no policy is stored for the domain.
	ErrNotFound = errors.New("no policy is stored")
	// ErrUnreadable: the file could not be read, or a running salvage has not reached
	// this domain yet. A policy may be held.
	ErrUnreadable = errors.New("the cache file cannot be read")
	// ErrClosed: the store is closed.
	ErrClosed = errors.New("the cache is closed")
	// ErrReadOnly: the store was opened for reading only.
	ErrReadOnly = errors.New("the cache was opened for reading only")
)

// A DamagedError is a policy that is held and cannot be read: the stored record
// has a wrong checksum.
type DamagedError struct {
	Domain string
	Err    error
}

func (e *DamagedError) Error() string {
	return "the stored policy of " + e.Domain + ": " + e.Err.Error()
}

// Unwrap returns what is wrong with the record.
func (e *DamagedError) Unwrap() error { return e.Err }

// A LockedError says that another process has the cache open.
type LockedError struct {
	Path string
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("cache %s: another process has it open", e.Path)
}

// A SchemaError is a file that a later version of this program has written.
// Open sets such a file aside; OpenReadOnly returns the error.
type SchemaError struct {
	Path   string
	Schema uint32
}

func (e *SchemaError) Error() string {
	return fmt.Sprintf("cache %s: a newer program wrote it: its schema is %d, this program knows up to %d",
		e.Path, e.Schema, schemaVersion)
}

// A NotAFileError says that the path of the cache is not a regular file. That is
// a mistake in the configuration, not damage.
type NotAFileError struct {
	Path string
	Kind string // what it is, as "folder"
}

func (e *NotAFileError) Error() string { return fmt.Sprintf("%s is a %s; name a file", e.Path, e.Kind) }

// CheckPath returns a *NotAFileError if path exists and is not a regular file.
func CheckPath(path string) error {
	info, err := os.Stat(path)
	if err != nil || info.Mode().IsRegular() {
		return nil // Open reports an error
	}
	if info.IsDir() {
		return &NotAFileError{path, "folder"}
	}
	return &NotAFileError{path, "device, pipe or socket"}
}
