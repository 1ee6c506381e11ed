/*
 * What the parts of the library share that Stasis preloads into CRIU.
 *
 * No C library of a certain version is needed: the two functions used of it
 * exist in every one, and system calls are made directly.
 */

typedef unsigned int u32;
typedef unsigned long u64;

#define NR_MMAP 9
#define NR_READLINK 89
#define PROT_READ 1
#define PROT_WRITE 2
#define MAP_SHARED 1

extern int *__errno_location(void);
extern char *getenv(const char *name);

static inline long syscall6(long n, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

static inline long parse(const char *s)
{
	long n = 0;

	if (!s || *s < '0' || *s > '9')
		return -1;
	for (; *s >= '0' && *s <= '9'; s++)
		n = n * 10 + (*s - '0');
	return n;
}

/*
 * Maps the file whose descriptor stands in an environment variable; 0 if there
 * is none. It is done when the library is loaded: CRIU closes descriptors later.
 */
static inline void *map_shared(const char *variable, u64 bytes, long protection)
{
	long fd = parse(getenv(variable));
	long at;

	if (fd < 0)
		return 0;
	at = syscall6(NR_MMAP, 0, bytes, protection, MAP_SHARED, fd, 0);
	return at < 0 && at > -4096 ? 0 : (void *)at;
}

static inline long result(long ret)
{
	if (ret < 0 && ret > -4096) {
		*__errno_location() = -ret;
		return -1;
	}
	return ret;
}

static inline int same(const char *a, const char *b)
{
	for (; *a && *a == *b; a++, b++)
		;
	return *a == *b;
}

/* What a descriptor is, as a path of less than `size` bytes; 0 if unknown. */
static inline long path_of(int fd, char *path, long size)
{
	char link[32] = "/proc/self/fd/";
	char digits[12];
	int n = 0, at = 14;
	long len;

	if (fd < 0)
		return 0;
	do
		digits[n++] = '0' + fd % 10;
	while (fd /= 10);
	while (n)
		link[at++] = digits[--n];
	link[at] = 0;

	len = syscall6(NR_READLINK, (long)link, (long)path, size - 1, 0, 0, 0);
	if (len <= 0)
		return 0;
	path[len] = 0;
	return len;
}
