package plan

import "testing"

func TestRebase(t *testing.T) {
	for _, x := range [][3]string{
		{"../a", "../b", "../a"}, {"a", "../b", "../b/a"}, {"/x/a", "../b", "/x/a"}, {"../a", "/x/b", "/x/a"},
		{"", "../b", ""}, {"s3://bucket/a", "../b", "s3://bucket/a"},
		{"../a", "", ""}, {"../a", "s3://bucket/x/b", "s3://bucket/x/a"},
	} {
		if got := rebase(x[0], x[1]); got != x[2] {
			t.Errorf("%s seen from %s is %s instead of %s", x[0], x[1], got, x[2])
		}
	}
}
