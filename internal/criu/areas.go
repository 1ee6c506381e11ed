package criu

// What CRIU's images say of a mapping in VmaEntry.status (criu/include/image.h).
const (
	AreaRegular     = 1 << 0
	AreaStack       = 1 << 1
	AreaVsyscall    = 1 << 2
	AreaVDSO        = 1 << 3
	AreaHeap        = 1 << 5
	AreaFilePrivate = 1 << 6
	AreaFileShared  = 1 << 7
	AreaAnonShared  = 1 << 8
	AreaAnonPrivate = 1 << 9
	AreaSysV        = 1 << 10
	AreaVVAR        = 1 << 12
	AreaMemfd       = 1 << 14
	AreaGuard       = 1 << 16 // no mapping but pages of one, behind all mappings: MADV_GUARD_INSTALL
	AreaWork        = 7 << 28 // CLOSE, NO_PROT_WRITE, PREMMAPED: CRIU's own notes
)
