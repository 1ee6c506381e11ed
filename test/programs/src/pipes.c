/* Things that hold bytes on their way: pipes, FIFOs, Unix socket pairs, terminals. */
#include "subject.h"
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>

#define HELD 40000

/* take reads n bytes of key's content, compares, and puts them back through the other end. */
static void take(const char *what, int from, int to, size_t n, uint64_t key)
{
	static char buf[HELD];
	int there = -1;
	if (ioctl(from, FIONREAD, &there) || there != (int)n) {
		bad("%s holds %d bytes, held %zu", what, there, n);
		return;
	}
	read_full(what, from, buf, n);
	if (bytes_wrong(buf, n, key))
		bad("%s: the bytes in it are wrong", what);
	bytes_fill(buf, n, key);
	write_full(to, buf, n);
}

static void put(int to, size_t n, uint64_t key)
{
	static char buf[HELD];
	bytes_fill(buf, n, key);
	write_full(to, buf, n);
}

/* ---- pipe ---- */

static int anon[2], fifo, widowed;

static void pipe_setup(struct args *a)
{
	(void)a;
	int w[2];
	const char *path = in_dir("fifo");
	if (pipe(anon) || pipe(w) || mkfifo(path, 0600))
		die_errno("pipe");
	if (fcntl(anon[1], F_SETPIPE_SZ, 256 * 1024) < 0)
		fcntl(anon[1], F_SETPIPE_SZ, 128 * 1024);
	fcntl(anon[0], F_SETFL, O_NONBLOCK);
	put(anon[1], HELD, 1);
	fifo = open(path, O_RDWR);
	put(fifo, 1000, 2);
	/* A pipe whose writer is gone, with bytes left. They can't be put back: it is only asked how many there are. */
	widowed = w[0];
	put(w[1], 77, 3);
	close(w[1]);
}

static int pipe_size;

static void pipe_start(void)
{
	pipe_size = fcntl(anon[0], F_GETPIPE_SZ);
}

static void pipe_check(void)
{
	int n = 0;
	take("pipe", anon[0], anon[1], HELD, 1);
	want("size of the pipe", fcntl(anon[0], F_GETPIPE_SZ), pipe_size);
	want("O_NONBLOCK", fcntl(anon[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	take("fifo", fifo, fifo, 1000, 2);
	ioctl(widowed, FIONREAD, &n);
	want("bytes in the pipe without a writer", n, 77);
}

const struct feature feature_pipe = {
	.name = "pipe", .help = "a pipe, a FIFO, a pipe without a writer, all holding bytes", .setup = pipe_setup,
	.start = pipe_start, .check = pipe_check,
};

/* ---- socketpair ---- */

static int stream[2], dgram[2], seqpacket[2], half[2];

static void message(int fd, int i)
{
	char buf[2000];
	bytes_fill(buf, 100 + i * 300, 10 + i);
	if (send(fd, buf, 100 + i * 300, 0) != 100 + i * 300)
		bad("send: %s", strerror(errno));
}

/* Messages keep their order and their borders. */
static void messages(const char *what, int from, int to)
{
	char buf[2000];
	for (int i = 0; i < 5; i++) {
		ssize_t n = recv(from, buf, sizeof buf, MSG_DONTWAIT);
		if (n != 100 + i * 300)
			bad("%s: message %d has %zd bytes, had %d", what, i, n, 100 + i * 300);
		else if (bytes_wrong(buf, n, 10 + i))
			bad("%s: message %d is wrong", what, i);
	}
	if (recv(from, buf, 1, MSG_DONTWAIT) >= 0)
		bad("%s: one message too many", what);
	for (int i = 0; i < 5; i++)
		message(to, i);
}

static void socketpair_setup(struct args *a)
{
	(void)a;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, stream) || socketpair(AF_UNIX, SOCK_DGRAM, 0, dgram) ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, seqpacket) || socketpair(AF_UNIX, SOCK_STREAM, 0, half))
		die_errno("socketpair");
	put(stream[0], 9000, 4);
	put(stream[1], 5000, 5);
	for (int i = 0; i < 5; i++) {
		message(dgram[0], i);
		message(seqpacket[0], i);
	}
	shutdown(half[0], SHUT_WR);
}

static void socketpair_check(void)
{
	char c;
	take("stream pair, one way", stream[1], stream[0], 9000, 4);
	take("stream pair, other way", stream[0], stream[1], 5000, 5);
	messages("datagram pair", dgram[1], dgram[0]);
	messages("packet pair", seqpacket[1], seqpacket[0]);
	if (recv(half[1], &c, 1, MSG_DONTWAIT) != 0)
		bad("the pair shut down for writing is open again");
	put(half[1], 100, 6);
	char buf[100];
	read_full("half-open pair", half[0], buf, sizeof buf);
	if (bytes_wrong(buf, sizeof buf, 6))
		bad("the half-open pair gives other bytes");
}

const struct feature feature_socketpair = {
	.name = "socketpair", .help = "Unix stream, datagram and packet pairs holding data, one half shut down",
	.setup = socketpair_setup, .check = socketpair_check,
};

/* ---- pty: a terminal with both ends, its settings, its size, and a line on its way ---- */

static int master, slave;
static struct termios tio;
static const char typed[] = "a line on its way\n";

static void pty_setup(struct args *a)
{
	(void)a;
	struct winsize ws = { .ws_row = 33, .ws_col = 101 };
	master = posix_openpt(O_RDWR | O_NOCTTY);
	if (master < 0 || grantpt(master) || unlockpt(master))
		die_errno("posix_openpt");
	slave = open(ptsname(master), O_RDWR | O_NOCTTY);
	if (slave < 0)
		die_errno("%s", ptsname(master));
	tcgetattr(slave, &tio);
	tio.c_lflag &= ~(ECHO | ISIG);
	tio.c_cc[VINTR] = 'x';
	cfsetospeed(&tio, B9600);
	tcsetattr(slave, TCSANOW, &tio);
	tcgetattr(slave, &tio);
	ioctl(master, TIOCSWINSZ, &ws);
	write_full(master, typed, sizeof typed - 1);
}

static void pty_check(void)
{
	struct winsize ws = { 0 };
	struct termios now;
	char buf[64] = "";
	int n = 0;
	if (ioctl(slave, FIONREAD, &n) || n != sizeof typed - 1)
		bad("the terminal holds %d bytes, held %zu", n, sizeof typed - 1);
	else if (read(slave, buf, sizeof buf) != n || memcmp(buf, typed, n))
		bad("the terminal holds other bytes");
	write_full(master, typed, sizeof typed - 1);
	ioctl(slave, TIOCGWINSZ, &ws);
	want("rows", ws.ws_row, 33);
	want("columns", ws.ws_col, 101);
	tcgetattr(slave, &now);
	want("local modes", now.c_lflag, tio.c_lflag);
	want("input modes", now.c_iflag, tio.c_iflag);
	want("output modes", now.c_oflag, tio.c_oflag);
	want("speed", cfgetospeed(&now), B9600);
	want("interrupt character", now.c_cc[VINTR], 'x');
	/* And the other way. */
	write_full(slave, "back", 4);
	if (read(master, buf, sizeof buf) != 4 || memcmp(buf, "back", 4))
		bad("what is written to the terminal does not arrive");
}

const struct feature feature_pty = {
	.name = "pty", .help = "a terminal, both ends, its settings, a typed line on its way", .setup = pty_setup,
	.check = pty_check,
};
