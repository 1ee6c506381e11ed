package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// An item is a record of itemSize bytes:
//
//	0    checksum of all that follows, CRC-32C
//	4    quantity
//	8    how many moves it has been part of
//	16   text: its key, and what a delivery note says about it
const (
	itemSize  = 512
	quantity0 = 1000 // of each item, in the beginning
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// store holds the goods.
type store struct {
	count int
	moves atomic.Int64

	mu     sync.Mutex
	index  map[string]int // guarded by mu; key to number of the item
	shelf  []byte         // guarded by mu; the items
	random *rand.Rand     // guarded by mu
}

func newStore(count int) *store {
	s := &store{count: count, index: make(map[string]int, count), shelf: make([]byte, count*itemSize), random: rand.New(rand.NewPCG(1, 2))}
	var text []byte
	for i := range count {
		item, name := s.item(i), key(i)
		s.index[name] = i
		binary.LittleEndian.PutUint32(item[4:], quantity0)
		for text = text[:0]; len(text) < itemSize; {
			text = append(append(text, name...), " shelf "...)
			text = strconv.AppendUint(text, s.random.Uint64(), 16)
			text = append(text, ", delivered by Smith & Sons; "...)
		}
		copy(item[16:], text)
		seal(item)
	}
	debug.FreeOSMemory() // the garbage of all this is nothing to dump
	return s
}

func key(number int) string { return "goods-" + strconv.Itoa(number) }

func (s *store) item(number int) []byte { return s.shelf[number*itemSize : (number+1)*itemSize] }

func seal(item []byte) { binary.LittleEndian.PutUint32(item, crc32.Checksum(item[4:], castagnoli)) }

// work moves goods for ever, so many times a second.
func (s *store) work(perSecond int) {
	const beat = 5 * time.Millisecond
	for range time.Tick(beat) {
		for range perSecond * int(beat) / int(time.Second) {
			s.move()
		}
	}
}

// move takes one piece of an item and books it on another.
func (s *store) move() {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, to := s.random.IntN(s.count), s.random.IntN(s.count)
	s.book(key(from), -1)
	s.book(key(to), +1)
	s.moves.Add(1)
}

func (s *store) book(key string, change int32) {
	item := s.item(s.index[key])
	binary.LittleEndian.PutUint32(item[4:], uint32(int32(binary.LittleEndian.Uint32(item[4:]))+change))
	binary.LittleEndian.PutUint64(item[8:], binary.LittleEndian.Uint64(item[8:])+1)
	seal(item)
}

// verify checks every item and the sums over all of them, and returns the number
// of moves that they add up to.
func (s *store) verify() (moves int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var pieces, booked int64
	for i := range s.count {
		item, name := s.item(i), key(i)
		if s.index[name] != i || string(item[16:16+len(name)]) != name {
			return 0, fmt.Errorf("%s is not where it belongs", name)
		}
		if binary.LittleEndian.Uint32(item) != crc32.Checksum(item[4:], castagnoli) {
			return 0, fmt.Errorf("the record of %s is damaged", name)
		}
		pieces += int64(int32(binary.LittleEndian.Uint32(item[4:])))
		booked += int64(binary.LittleEndian.Uint64(item[8:]))
	}
	moves = s.moves.Load()
	if want := int64(s.count) * quantity0; pieces != want {
		return 0, fmt.Errorf("%d pieces are there, should be %d", pieces, want)
	}
	if booked != 2*moves {
		return 0, fmt.Errorf("%d bookings are on record, should be %d", booked, 2*moves)
	}
	return moves, nil
}
