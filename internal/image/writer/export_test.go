package writer

// SetWindowRuns makes the windows of a Writer small.
func SetWindowRuns(w *Writer, runs int) { w.records.WindowRuns = runs }

// GiveUpComparing makes a Writer compare with some of the parent's blocks only.
func GiveUpComparing(w *Writer) {
	w.worth.all.Store(0)
	w.worth.salt = 1
}

// What tests have to know of.
const (
	MaxPagesShared = maxShares
	MostRounds     = maxRound
)
