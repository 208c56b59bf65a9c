package cache

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// crashes is how many starts in a row that ended within a minute, without a
// clean stop, count as damage of the file.
const crashes = 10

var errCrashed = errors.New("ten starts in a row ended within a minute of opening it")

// starts counts those starts in a file of its own beside the cache: damage that
// ends the process would do so again before bbolt can be asked.
type starts struct {
	path  string
	count int
	acted int64 // when the count last had the file set aside, in Unix seconds; 0: never
}

// begin counts a start, and returns errCrashed if it is one too many; once, and
// not again within a day. Where nothing can be written, nothing is counted.
func (st *starts) begin(now time.Time) (err error) {
	b, _ := os.ReadFile(st.path)
	_, _ = fmt.Sscan(string(b), &st.count, &st.acted)
	if st.count >= crashes && now.Unix()-st.acted >= secondsPerDay {
		st.count, st.acted, err = 0, now.Unix(), errCrashed
	}
	st.count++
	st.write()
	return err
}

// end forgets the count: the start has lasted for a minute, or ends cleanly.
func (st *starts) end() {
	if st.count > 0 {
		st.count = 0
		st.write()
	}
}

func (st *starts) write() {
	if st.count == 0 && st.acted == 0 {
		_ = os.Remove(st.path)
		return
	}
	fd, err := os.OpenFile(st.path, os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		fd, err = createOwned(st.path)
	}
	if err == nil {
		_, _ = fmt.Fprintln(fd, st.count, st.acted)
		_ = fd.Close()
	}
}
