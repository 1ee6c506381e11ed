/*
 * A preloaded library that tells a program it runs as the user STASIS_FAKE_UID.
 *
 * PostgreSQL refuses to run as root, and where root lacks CAP_SYS_RESOURCE (some containers and virtual machines) CRIU can't
 * dump another user's process. There, tests run PostgreSQL as root with this in between; elsewhere as a user of its own.
 */
#include <stdlib.h>
#include <sys/types.h>

static uid_t fake(void)
{
	const char *uid = getenv("STASIS_FAKE_UID");
	return uid ? (uid_t)atoi(uid) : 65534;
}

uid_t getuid(void)
{
	return fake();
}

uid_t geteuid(void)
{
	return fake();
}
