/*
 * The part of the preloaded library for names: CRIU calls the table of nftables
 * in which it locks connections after a uuid that it makes when it starts. Stasis
 * chooses it, so that it can remove the table of a CRIU that was killed before it
 * had written the name anywhere.
 */

#include "preload.h"

#define NR_GETRANDOM 318

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

__attribute__((visibility("default"))) void uuid_generate(unsigned char *out)
{
	const char *id = getenv("STASIS_RUN_ID");

	for (int i = 0; i < 16; i++) {
		int high = id ? digit(id[2 * i]) : -1, low = high < 0 ? -1 : digit(id[2 * i + 1]);

		if (low < 0) { /* nothing was chosen: random, as RFC 9562 has it */
			syscall6(NR_GETRANDOM, (long)out, 16, 0, 0, 0, 0);
			out[6] = (out[6] & 0x0f) | 0x40;
			out[8] = (out[8] & 0x3f) | 0x80;
			return;
		}
		out[i] = high << 4 | low;
	}
}
