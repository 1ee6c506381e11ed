package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// The log's files: the newest, and so many older ones.
const (
	logName     = "log"
	olderLogs   = 3
	smallestLog = 64 << 10 // of one file, however little is to be kept: more than is written at once
)

// logFile is a log that starts a new file when one is full.
type logFile struct {
	dir   string
	limit int64
	file  *os.File
	size  int64
}

func openLog(dir string, limit int64) (*logFile, error) {
	l := &logFile{dir: dir, limit: limit}
	return l, l.open()
}

func (l *logFile) open() error {
	file, err := os.OpenFile(filepath.Join(l.dir, logName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the job's log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	l.file, l.size = file, info.Size()
	return nil
}

// Write adds to the log. It never fails: a full disk must not stop the job, so what does not fit is lost.
func (l *logFile) Write(b []byte) (int, error) {
	if l.size > 0 && l.size+int64(len(b)) > l.limit {
		l.rotate()
	}
	n, _ := l.file.Write(b)
	l.size += int64(n)
	return len(b), nil
}

// rotate renames the files one further, the oldest is overwritten.
func (l *logFile) rotate() {
	for i := olderLogs; i > 0; i-- {
		err := os.Rename(logPath(l.dir, i-1), logPath(l.dir, i))
		if i == 1 && err != nil && !errors.Is(err, fs.ErrNotExist) { // somebody may have deleted it
			l.size = 0 // go on in the old file
			return
		}
	}
	old := l.file
	if l.open() == nil {
		old.Close()
	}
}

func logPath(dir string, i int) string {
	if i == 0 {
		return filepath.Join(dir, logName)
	}
	return fmt.Sprintf("%s.%d", filepath.Join(dir, logName), i)
}

// followEvery is how often a log that is followed is looked at.
const followEvery = 100 * time.Millisecond

// CopyLog writes a job's log to w: its last so many lines, or all of it where lines is negative. With follow it goes on with
// what is printed later, until the context ends or over says that nothing will come any more.
func CopyLog(ctx context.Context, dir string, lines int, follow bool, over func() bool, w io.Writer) error {
	newest, err := copyOlder(dir, lines, w)
	if err != nil || newest == nil {
		return err
	}
	defer func() { newest.Close() }()
	for {
		last := !follow || over()
		if _, err := io.Copy(w, newest); err != nil {
			return fmt.Errorf("copy the job's log: %w", err)
		}
		if next := rotated(dir, newest); next != nil {
			if _, err := io.Copy(w, newest); err != nil {
				return errors.Join(fmt.Errorf("copy the job's log: %w", err), next.Close())
			}
			newest.Close()
			newest = next
			continue
		}
		if last {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followEvery):
		}
	}
}

// rotated gives the newer file where there is one. The one after next counts as well: what is in between is lost to who reads so slowly.
func rotated(dir string, file *os.File) *os.File {
	next, err := os.Open(filepath.Join(dir, logName))
	if err != nil {
		return nil
	}
	a, errA := file.Stat()
	b, errB := next.Stat()
	if errA != nil || errB != nil || os.SameFile(a, b) {
		next.Close()
		return nil
	}
	return next
}

// copyOlder writes what is wanted from all files but the newest, which it returns at the place to go on from.
func copyOlder(dir string, lines int, w io.Writer) (*os.File, error) {
	files, err := openAll(dir, os.Open)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	defer func() { closeAll(files) }()
	first := 0
	if lines >= 0 {
		left := lines
		for first = len(files) - 1; ; first-- {
			found, err := seekLines(files[first], left)
			if err != nil {
				return nil, fmt.Errorf("read the job's log: %w", err)
			}
			if left -= found; left <= 0 || first == 0 {
				break
			}
		}
	}
	for _, file := range files[first : len(files)-1] {
		if _, err := io.Copy(w, file); err != nil {
			return nil, fmt.Errorf("copy the job's log: %w", err)
		}
	}
	newest := files[len(files)-1]
	files = files[:len(files)-1]
	return newest, nil
}

// openAll opens the files of a log, the oldest first, again where they have got other names meanwhile.
func openAll(dir string, open func(path string) (*os.File, error)) (files []*os.File, err error) {
	for range 10 { // a log that is full so often is nothing that anybody could read
		closeAll(files)
		files = nil
		for i := olderLogs; i >= 0; i-- {
			file, err := open(logPath(dir, i))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				closeAll(files)
				return nil, fmt.Errorf("read the job's log: %w", err)
			}
			files = append(files, file)
		}
		if haveNames(dir, files) {
			break
		}
	}
	return files, nil
}

// haveNames says whether these are all files of a log, under the names that they have now.
func haveNames(dir string, files []*os.File) bool {
	for i := olderLogs; i >= 0; i-- {
		now, err := os.Stat(logPath(dir, i))
		if err != nil {
			continue
		}
		if len(files) == 0 {
			return false
		}
		was, err := files[0].Stat()
		if err != nil || !os.SameFile(was, now) {
			return false
		}
		files = files[1:]
	}
	return len(files) == 0
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// seekLines goes to the beginning of the last n lines of a file, and says how many that are.
func seekLines(file *os.File, n int) (found int, err error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	at, buf := info.Size(), make([]byte, 32<<10)
	end := at
	if n == 0 {
		_, err = file.Seek(at, io.SeekStart)
		return 0, err
	}
	for at > 0 {
		size := min(at, int64(len(buf)))
		at -= size
		if _, err := file.ReadAt(buf[:size], at); err != nil {
			return 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || at+i == end-1 { // the end of the last line begins none
				continue
			}
			if found++; found == n {
				_, err = file.Seek(at+i+1, io.SeekStart)
				return found, err
			}
		}
	}
	if end > 0 {
		found++
	}
	_, err = file.Seek(0, io.SeekStart)
	return found, err
}
