/* Sockets with an address: Unix listeners, TCP listening and connected over loopback, UDP. */
#include "subject.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

static void put(int to, size_t n, uint64_t key)
{
	static char buf[65536];
	bytes_fill(buf, n, key);
	write_full(to, buf, n);
}

/* Bytes of a TCP connection arrive a moment later. */
static bool arrived(void *arg)
{
	int n = 0;
	ioctl(((int *)arg)[0], FIONREAD, &n);
	return n >= ((int *)arg)[1];
}

static void take(const char *what, int from, int to, size_t n, uint64_t key)
{
	static char buf[65536];
	int waiting[2] = { from, (int)n };
	if (!within(3000, arrived, waiting)) {
		int there = 0;
		ioctl(from, FIONREAD, &there);
		bad("%s: %d bytes wait to be read, should be %zu", what, there, n);
		return;
	}
	read_full(what, from, buf, n);
	if (bytes_wrong(buf, n, key))
		bad("%s: the bytes in it are wrong", what);
	put(to, n, key);
}

/* ping writes from one end to the other, and finds both empty before and after. */
static void ping(const char *what, int from, int to)
{
	char buf[100];
	struct pollfd p = { .fd = to, .events = POLLIN };
	put(from, sizeof buf, 9);
	if (poll(&p, 1, 3000) != 1) {
		bad("%s: nothing arrives", what);
		return;
	}
	read_full(what, to, buf, sizeof buf);
	if (bytes_wrong(buf, sizeof buf, 9))
		bad("%s: other bytes arrive", what);
}

/* ---- unixlisten ---- */

static int listener, client, accepted, abstract;
static struct sockaddr_un path_addr, abstract_addr;

static int unix_connect(const struct sockaddr_un *addr, socklen_t len)
{
	int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (connect(s, (void *)addr, len)) {
		close(s);
		return -1;
	}
	return s;
}

static socklen_t abstract_len(void)
{
	return offsetof(struct sockaddr_un, sun_path) + 1 + strlen(abstract_addr.sun_path + 1);
}

static void unixlisten_setup(struct args *a)
{
	(void)a;
	const char *path = in_dir("socket");
	if (strlen(path) >= sizeof path_addr.sun_path)
		die("the folder's name is too long for a socket: %s", path);
	path_addr.sun_family = abstract_addr.sun_family = AF_UNIX;
	strcpy(path_addr.sun_path, path);
	snprintf(abstract_addr.sun_path + 1, sizeof abstract_addr.sun_path - 1, "stasis-subject-%d", getpid());
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	abstract = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(listener, (void *)&path_addr, sizeof path_addr) || listen(listener, 7) ||
	    bind(abstract, (void *)&abstract_addr, abstract_len()) || listen(abstract, 7))
		die_errno("listen");
	chmod(path, 0620);
	client = unix_connect(&path_addr, sizeof path_addr);
	accepted = accept(listener, NULL, NULL);
	if (client < 0 || accepted < 0)
		die_errno("connect");
	put(client, 3000, 7);
}

static void accepts(const char *what, int l, const struct sockaddr_un *addr, socklen_t len)
{
	int c = unix_connect(addr, len);
	int s = c < 0 ? -1 : accept(l, NULL, NULL);
	if (s < 0)
		bad("%s: %s", what, strerror(errno));
	else
		ping(what, c, s);
	close(c);
	close(s);
}

static void unixlisten_check(void)
{
	struct stat st;
	take("connected Unix socket", accepted, client, 3000, 7);
	ping("connected Unix socket, back", accepted, client);
	accepts("Unix listener", listener, &path_addr, sizeof path_addr);
	accepts("abstract Unix listener", abstract, &abstract_addr, abstract_len());
	if (stat(path_addr.sun_path, &st))
		bad("%s: %s", path_addr.sun_path, strerror(errno));
	want("mode of the socket's file", st.st_mode & 0777, 0620);
}

const struct feature feature_unixlisten = {
	.name = "unixlisten", .help = "Unix listeners with a path and an abstract name, and a connection holding data",
	.setup = unixlisten_setup, .check = unixlisten_check,
};

/* ---- tcplisten, tcp ---- */

/*
 * A loopback address of this process's own: while it is dead, nobody else's connection can take a port that it has to get
 * back.
 */
static struct sockaddr_in any_port(void)
{
	in_addr_t own = (127U << 24) + (64U << 16) + (unsigned)getpid();
	return (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(own) };
}

static int tcp_listen(struct sockaddr_in *at)
{
	socklen_t len = sizeof *at;
	int s = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(s, (void *)at, sizeof *at) || listen(s, 5) || getsockname(s, (void *)at, &len))
		die_errno("listen");
	return s;
}

static int get_int(int fd, int level, int name)
{
	int v = -1;
	socklen_t len = sizeof v;
	getsockopt(fd, level, name, &v, &len);
	return v;
}

static void set_int(int fd, int level, int name, int v)
{
	if (setsockopt(fd, level, name, &v, sizeof v))
		die_errno("setsockopt");
}

static int tcp_door;
static struct sockaddr_in tcp_door_at;

static void tcplisten_setup(struct args *a)
{
	(void)a;
	tcp_door_at = any_port();
	tcp_door = tcp_listen(&tcp_door_at);
	/* Closing it leaves TIME_WAIT behind at each check. */
	set_int(tcp_door, SOL_SOCKET, SO_REUSEADDR, 1);
}

static void tcplisten_check(void)
{
	int c = socket(AF_INET, SOCK_STREAM, 0), s = -1;
	if (connect(c, (void *)&tcp_door_at, sizeof tcp_door_at) || (s = accept(tcp_door, NULL, NULL)) < 0)
		bad("connect: %s", strerror(errno));
	else {
		ping("new connection", c, s);
		ping("new connection, back", s, c);
		/* A reset: else the closed connection would linger and stand in the way of a checkpoint. */
		struct linger l = { 1, 0 };
		setsockopt(c, SOL_SOCKET, SO_LINGER, &l, sizeof l);
	}
	close(c);
	close(s);
	want("SO_REUSEADDR", get_int(tcp_door, SOL_SOCKET, SO_REUSEADDR), 1);
}

const struct feature feature_tcplisten = {
	.name = "tcplisten", .help = "a TCP listener on loopback, at a free port", .setup = tcplisten_setup,
	.check = tcplisten_check,
};

static int near, far;

static void tcp_setup(struct args *a)
{
	(void)a;
	struct sockaddr_in at = any_port();
	int l = tcp_listen(&at);
	near = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(near, (void *)&at, sizeof at) || (far = accept(l, NULL, NULL)) < 0)
		die_errno("connect");
	close(l);
	set_int(near, IPPROTO_TCP, TCP_NODELAY, 1);
	set_int(near, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_int(near, IPPROTO_TCP, TCP_KEEPIDLE, 4000);
	set_int(far, SOL_SOCKET, SO_OOBINLINE, 1);
	put(near, 20000, 8);
	put(far, 10000, 9);
}

static void tcp_check(void)
{
	take("TCP, one way", far, near, 20000, 8);
	take("TCP, other way", near, far, 10000, 9);
	want("TCP_NODELAY", get_int(near, IPPROTO_TCP, TCP_NODELAY), 1);
	want("SO_KEEPALIVE", get_int(near, SOL_SOCKET, SO_KEEPALIVE), 1);
	want("TCP_KEEPIDLE", get_int(near, IPPROTO_TCP, TCP_KEEPIDLE), 4000);
	want("SO_OOBINLINE", get_int(far, SOL_SOCKET, SO_OOBINLINE), 1);
}

const struct feature feature_tcp = {
	.name = "tcp", .help = "a TCP connection over loopback, data waiting both ways (--tcp-established)", .setup = tcp_setup,
	.check = tcp_check,
};

/* ---- udp ---- */

static int udp_a, udp_b;

static void udp_setup(struct args *a)
{
	(void)a;
	struct sockaddr_in at_a = any_port(), at_b = any_port();
	socklen_t len = sizeof at_a;
	udp_a = socket(AF_INET, SOCK_DGRAM, 0);
	udp_b = socket(AF_INET, SOCK_DGRAM, 0);
	if (bind(udp_a, (void *)&at_a, len) || bind(udp_b, (void *)&at_b, len) || getsockname(udp_a, (void *)&at_a, &len) ||
	    getsockname(udp_b, (void *)&at_b, &len) || connect(udp_a, (void *)&at_b, len) || connect(udp_b, (void *)&at_a, len))
		die_errno("udp");
	set_int(udp_a, SOL_SOCKET, SO_BROADCAST, 1);
}

static void udp_check(void)
{
	ping("UDP", udp_a, udp_b);
	ping("UDP, back", udp_b, udp_a);
	want("SO_BROADCAST", get_int(udp_a, SOL_SOCKET, SO_BROADCAST), 1);
}

const struct feature feature_udp = {
	.name = "udp", .help = "two UDP sockets bound and connected to each other", .setup = udp_setup, .check = udp_check,
};
