/*
 * Asks for its own pages as CRIU does, with the library preloaded that hides
 * some. First it prints its pid and where its 4096 pages are, of which every
 * third is there; then it waits for a line, scans and prints the number of each
 * page that it sees, and at last where the walk ended.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct scan {
	unsigned long size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, result;
};
struct region {
	unsigned long start, end, categories;
};

int main(int argc, char **argv)
{
	long n = 4096, len = n * 4096, vec_len = atol(argv[1]);
	struct region *regions = calloc(vec_len, sizeof(*regions));
	char *memory = mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("/proc/self/pagemap", O_RDONLY);
	char line[16];

	madvise(memory, len, MADV_NOHUGEPAGE);
	for (long i = 0; i < n; i += 3)
		memory[i * 4096] = 1;
	printf("%d %lu\n", getpid(), (unsigned long)memory);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 1;
	for (unsigned long at = (unsigned long)memory; at < (unsigned long)memory + len;) {
		struct scan arg = { sizeof(arg), 0, at, (unsigned long)memory + len, 0, (unsigned long)regions, vec_len, 0, 0x24, 0x24, 0x18, 0x18 };
		int found = ioctl(fd, 0xc0606610UL, &arg);

		if (found < 0) {
			perror("PAGEMAP_SCAN");
			return 1;
		}
		for (int i = 0; i < found; i++)
			for (unsigned long p = regions[i].start; p < regions[i].end; p += 4096)
				printf("%lu\n", (p - (unsigned long)memory) / 4096);
		at = arg.walk_end;
	}
	return 0;
}
