package wire

import "stasis/internal/catalog"

// ChainLengths gives the number of checkpoints in the chain of each, itself included, as far as the ancestors are in the list.
func ChainLengths(list []*catalog.Entry) map[*catalog.Entry]int32 {
	byID := make(map[string]*catalog.Entry, len(list))
	for _, e := range list {
		byID[e.Manifest.ID] = e
	}
	lengths := make(map[*catalog.Entry]int32, len(list))
	for _, e := range list {
		var unknown []*catalog.Entry // from here up to an ancestor whose length is known, or the last
		at := e
		for at != nil && lengths[at] == 0 {
			lengths[at] = -1 // on the way; a ring, which only a forged manifest can make, ends here
			unknown = append(unknown, at)
			at = byID[at.Manifest.Parent]
		}
		n := int32(0)
		if at != nil {
			n = max(lengths[at], 0)
		}
		for i := len(unknown) - 1; i >= 0; i-- {
			n++
			lengths[unknown[i]] = n
		}
	}
	return lengths
}
