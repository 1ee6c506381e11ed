package plan

// list grows without moving what is in it, so that it never needs twice its size.
type list[T any] struct{ chunks [][]T }

const chunk = 2048

func (l *list[T]) Add(v T) {
	if n := len(l.chunks); n == 0 || len(l.chunks[n-1]) == chunk {
		l.chunks = append(l.chunks, make([]T, 0, chunk))
	}
	last := &l.chunks[len(l.chunks)-1]
	*last = append(*last, v)
}

func (l *list[T]) Len() int {
	if len(l.chunks) == 0 {
		return 0
	}
	return (len(l.chunks)-1)*chunk + len(l.chunks[len(l.chunks)-1])
}

func (l *list[T]) at(i int) *T { return &l.chunks[i/chunk][i%chunk] }
