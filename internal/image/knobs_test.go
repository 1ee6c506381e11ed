package image

// setWindowRuns makes the windows of a Writer small.
func setWindowRuns(w *Writer, runs int) { w.records.windowRuns = runs }

// giveUpComparing makes a Writer compare with some of the parent's blocks only.
func giveUpComparing(w *Writer) {
	w.worth.all.Store(0)
	w.worth.salt = 1
}

// What tests have to know of.
const (
	maxPagesShared = maxShares
	mostRounds     = maxRound
)
