/* The application that runs in every pod of the lab, and as the server they dial: one static binary, IP literals only
 * (getaddrinfo of a static glibc crashes inside gVisor). Every command prints one line of JSON and exits 0, or 1 if
 * what it tried did not work. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <nodesentry.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "datagrams.h"

#define CHUNK 65536
/* Times NODESENTRY_TEST_PATIENCE, where that reaches us. */
#define TIMEOUT_MS 20000

static int patience = 1;

struct target {
    struct sockaddr_storage address;
    socklen_t length;
    int family;
};

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static struct target parse_target(const char *ip, const char *port) {
    struct target target = {};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&target.address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&target.address;

    if (inet_pton(AF_INET, ip, &v4->sin_addr) == 1) {
        target.family = v4->sin_family = AF_INET;
        v4->sin_port = htons(atoi(port));
        target.length = sizeof(*v4);
    } else if (inet_pton(AF_INET6, ip, &v6->sin6_addr) == 1) {
        target.family = v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(atoi(port));
        target.length = sizeof(*v6);
    } else {
        fprintf(stderr, "not an IP address: %s\n", ip);
        exit(2);
    }
    return target;
}

/* Connects within TIMEOUT_MS; -1 and errno otherwise. */
static int dial(const struct target *target) {
    int fd = socket(target->family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {.tv_sec = (TIMEOUT_MS * patience) / 1000};

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (connect(fd, (const struct sockaddr *)&target->address, target->length) == 0)
        return fd;
    int error = errno == EINPROGRESS || errno == EAGAIN ? ETIMEDOUT : errno;
    close(fd);
    errno = error;
    return -1;
}

static int local_port(int fd) {
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);

    if (getsockname(fd, (struct sockaddr *)&address, &length))
        return 0;
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

static int send_all(int fd, const void *data, size_t length) {
    for (const char *from = data; length > 0;) {
        ssize_t sent = send(fd, from, length, MSG_NOSIGNAL);
        if (sent <= 0)
            return -1;
        from += sent;
        length -= sent;
    }
    return 0;
}

/* A line without its newline; -1 at the end or on an error. */
static int read_line(int fd, char *line, size_t size) {
    size_t used = 0;

    while (used + 1 < size) {
        ssize_t got = recv(fd, line + used, 1, 0);
        if (got <= 0)
            return -1;
        if (line[used] == '\n')
            break;
        used++;
    }
    line[used] = 0;
    return (int)used;
}

static const char *error_name(int error) {
    return error == 0               ? "closed"
           : error == EAGAIN        ? "ETIMEDOUT"
           : strerrorname_np(error) ? strerrorname_np(error)
                                    : "unknown";
}

static int failed(const char *what, int error, double started) {
    printf("{\"ok\":false,\"failed\":\"%s\",\"error\":\"%s\",\"ms\":%.1f}\n", what, error_name(error),
           now_ms() - started);
    return 1;
}

/* The stream that both ends can make: xorshift64 from a fixed seed, and its FNV-1a checksum by 64-bit words. */
static void fill(uint64_t *words, size_t count, uint64_t *state) {
    for (size_t i = 0; i < count; i++) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        words[i] = *state;
    }
}

#define SEED 88172645463325252ull
#define FNV_START 14695981039346656037ull

static uint64_t fnv(uint64_t sum, const unsigned char *bytes, size_t length) {
    for (size_t i = 0; i < length; i++)
        sum = (sum ^ bytes[i]) * 1099511628211ull;
    return sum;
}

static int send_stream(int fd, uint64_t bytes, uint64_t *sum) {
    static __thread uint64_t words[CHUNK / 8];
    uint64_t state = SEED;

    *sum = FNV_START;
    while (bytes > 0) {
        size_t length = bytes < CHUNK ? bytes : CHUNK;
        fill(words, CHUNK / 8, &state);
        *sum = fnv(*sum, (unsigned char *)words, length);
        if (send_all(fd, words, length))
            return -1;
        bytes -= length;
    }
    return 0;
}

static uint64_t receive_stream(int fd, uint64_t *sum) {
    static __thread unsigned char buffer[CHUNK];
    uint64_t total = 0;

    *sum = FNV_START;
    for (;;) {
        ssize_t got = recv(fd, buffer, sizeof(buffer), 0);
        if (got <= 0)
            return total;
        *sum = fnv(*sum, buffer, got);
        total += got;
    }
}

/* --- server ----------------------------------------------------------------------------------------------------- */

static void address_text(const struct sockaddr_storage *address, char *text, size_t size) {
    char ip[INET6_ADDRSTRLEN] = "";
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;

    if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr)) {
        inet_ntop(AF_INET, &v6->sin6_addr.s6_addr[12], ip, sizeof(ip));
        snprintf(text, size, "%s:%d", ip, ntohs(v6->sin6_port));
    } else {
        inet_ntop(AF_INET6, &v6->sin6_addr, ip, sizeof(ip));
        snprintf(text, size, "[%s]:%d", ip, ntohs(v6->sin6_port));
    }
}

/* With a reset. */
static void abort_connection(int fd) {
    struct linger at_once = {.l_onoff = 1};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(fd);
}

static void *serve_one(void *argument) {
    int fd = (int)(intptr_t)argument;
    struct sockaddr_storage peer, local;
    socklen_t peer_length = sizeof(peer), local_length = sizeof(local);
    char line[256], from[80] = "", to[80] = "", reply[512];
    uint64_t sum, bytes;

    if (getpeername(fd, (struct sockaddr *)&peer, &peer_length) == 0)
        address_text(&peer, from, sizeof(from));
    if (getsockname(fd, (struct sockaddr *)&local, &local_length) == 0)
        address_text(&local, to, sizeof(to));
    while (read_line(fd, line, sizeof(line)) >= 0) {
        if (strcmp(line, "hello") == 0) {
            snprintf(reply, sizeof(reply), "{\"peer\":\"%s\",\"local\":\"%s\"}\n", from, to);
            if (send_all(fd, reply, strlen(reply)))
                break;
        } else if (sscanf(line, "send %lu", &bytes) == 1) {
            send_stream(fd, bytes, &sum);
            break;
        } else if (sscanf(line, "recv %lu", &bytes) == 1) {
            uint64_t got = receive_stream(fd, &sum);
            snprintf(reply, sizeof(reply), "{\"bytes\":%lu,\"sum\":\"%016lx\"}\n", got, sum);
            send_all(fd, reply, strlen(reply));
            break;
        } else if (strcmp(line, "abort") == 0) {
            abort_connection(fd);
            return NULL;
        } else if (sscanf(line, "end %lu", &bytes) == 1) {
            usleep(bytes * 1000);
            shutdown(fd, SHUT_WR);
            receive_stream(fd, &sum);
            break;
        } else {
            size_t length = strlen(line);
            line[length] = '\n';
            if (send_all(fd, line, length + 1))
                break;
        }
    }
    close(fd);
    return NULL;
}

/* Goes on without who started it, whose command ends once the ports are open. */
static void stay_behind(void) {
    int none = open("/dev/null", O_RDWR);

    fflush(stdout);
    if (fork() > 0)
        _exit(0);
    setsid();
    for (int fd = 0; fd < 3 && none >= 0; fd++)
        dup2(none, fd);
}

static int serve(int count, char **ports, int behind) {
    struct pollfd listeners[16];

    if (count < 1 || count > 16)
        return 2;
    for (int i = 0; i < count; i++) {
        struct sockaddr_in6 any = {
            .sin6_family = AF_INET6, .sin6_port = htons(atoi(ports[i])), .sin6_addr = in6addr_any};
        int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, off = 0;

        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
        if (bind(fd, (struct sockaddr *)&any, sizeof(any)) || listen(fd, 4096)) {
            perror("listen");
            return 1;
        }
        listeners[i] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    puts("{\"ok\":true,\"serving\":true}");
    fflush(stdout);
    if (behind)
        stay_behind();
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&detached, 256 << 10);
    for (;;) {
        if (poll(listeners, count, -1) < 0)
            continue;
        for (int i = 0; i < count; i++) {
            if (!(listeners[i].revents & POLLIN))
                continue;
            int fd = accept(listeners[i].fd, NULL, NULL);
            pthread_t thread;
            if (fd >= 0 && pthread_create(&thread, &detached, serve_one, (void *)(intptr_t)fd))
                close(fd);
        }
    }
}

/* --- clients ---------------------------------------------------------------------------------------------------- */

static int say_hello(const char *ip, const char *port) {
    struct target target = parse_target(ip, port);
    double started = now_ms();
    char line[8192];
    int fd = dial(&target);

    if (fd < 0)
        return failed("connect", errno, started);
    errno = 0;
    if (send_all(fd, "hello\n", 6) || read_line(fd, line, sizeof(line)) < 0)
        return failed("hello", errno, started);
    printf("{\"ok\":true,\"localPort\":%d,\"server\":%s,\"ms\":%.1f}\n", local_port(fd), line, now_ms() - started);
    return 0;
}

static void print_text(const char *text, size_t length) {
    putchar('"');
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = text[i];
        if (byte < 0x20 || byte > 0x7e || byte == '"' || byte == '\\')
            printf("\\u%04x", byte);
        else
            putchar(byte);
    }
    putchar('"');
}

/* GET / over HTTP/1.1 with headers such as name:value; prints what came back until the end, status line and all. */
static int request(const char *ip, const char *port, int count, char **headers) {
    struct target target = parse_target(ip, port);
    double started = now_ms();
    static char text[CHUNK];
    size_t length = 0;
    ssize_t got;
    int fd = dial(&target);

    if (fd < 0)
        return failed("connect", errno, started);
    length = snprintf(text, sizeof(text), "GET / HTTP/1.1\r\nhost: app\r\nconnection: close\r\n");
    for (int i = 0; i < count && length < sizeof(text); i++)
        length += snprintf(text + length, sizeof(text) - length, "%s\r\n", headers[i]);
    if (length + 2 >= sizeof(text))
        return failed("headers", E2BIG, started);
    memcpy(text + length, "\r\n", 2);
    if (send_all(fd, text, length + 2))
        return failed("send", errno, started);
    length = 0;
    while ((got = recv(fd, text + length, sizeof(text) - length, 0)) > 0)
        length += got;
    if (got < 0)
        return failed("answer", errno, started);
    printf("{\"ok\":true,\"localPort\":%d,\"answer\":", local_port(fd));
    print_text(text, length);
    printf("}\n");
    return 0;
}

static int fetch(const char *ip, const char *port, const char *size) {
    struct target target = parse_target(ip, port);
    uint64_t wanted = strtoull(size, NULL, 10), sum, expected = FNV_START, state = SEED;
    static uint64_t words[CHUNK / 8];
    double started = now_ms();
    char line[64];
    int fd = dial(&target);

    if (fd < 0)
        return failed("connect", errno, started);
    snprintf(line, sizeof(line), "send %lu\n", wanted);
    if (send_all(fd, line, strlen(line)))
        return failed("send", errno, started);
    uint64_t got = receive_stream(fd, &sum);
    double ms = now_ms() - started;
    for (uint64_t left = wanted; left > 0;) {
        size_t length = left < CHUNK ? left : CHUNK;
        fill(words, CHUNK / 8, &state);
        expected = fnv(expected, (unsigned char *)words, length);
        left -= length;
    }
    int ok = got == wanted && sum == expected;
    printf("{\"ok\":%s,\"bytes\":%lu,\"sum\":\"%016lx\",\"ms\":%.1f}\n", ok ? "true" : "false", got, sum, ms);
    return !ok;
}

static int push(const char *ip, const char *port, const char *size) {
    struct target target = parse_target(ip, port);
    uint64_t bytes = strtoull(size, NULL, 10), sum, seen = 0;
    double started = now_ms();
    char line[128], theirs[32] = "", ours[32];
    int fd = dial(&target);

    if (fd < 0)
        return failed("connect", errno, started);
    snprintf(line, sizeof(line), "recv %lu\n", bytes);
    if (send_all(fd, line, strlen(line)) || send_stream(fd, bytes, &sum) || shutdown(fd, SHUT_WR))
        return failed("send", errno, started);
    if (read_line(fd, line, sizeof(line)) < 0 || sscanf(line, "{\"bytes\":%lu,\"sum\":\"%16s", &seen, theirs) != 2)
        return failed("reply", errno, started);
    snprintf(ours, sizeof(ours), "%016lx", sum);
    int ok = seen == bytes && strncmp(ours, theirs, 16) == 0;
    printf("{\"ok\":%s,\"bytes\":%lu,\"ms\":%.1f}\n", ok ? "true" : "false", seen, now_ms() - started);
    return !ok;
}

static int one_request(int fd, int number) {
    char line[64], reply[64];

    snprintf(line, sizeof(line), "ping %d\n", number);
    if (send_all(fd, line, strlen(line)) || read_line(fd, reply, sizeof(reply)) < 0)
        return -1;
    line[strlen(line) - 1] = 0;
    return strcmp(line, reply) == 0 ? 0 : -1;
}

static int keepalive(const char *ip, const char *port, int count, int interval_us) {
    struct target target = parse_target(ip, port);
    double started = now_ms(), slowest = 0;
    int fd = dial(&target), done = 0;

    if (fd < 0)
        return failed("connect", errno, started);
    errno = 0;
    for (; done < count; done++) {
        double begun = now_ms();
        if (one_request(fd, done))
            break;
        slowest = now_ms() - begun > slowest ? now_ms() - begun : slowest;
        usleep(interval_us);
    }
    printf("{\"ok\":%s,\"done\":%d,\"failures\":%d,\"error\":\"%s\",\"slowestMs\":%.1f,\"ms\":%.1f}\n",
           done == count ? "true" : "false", done, count - done, error_name(errno), slowest, now_ms() - started);
    return done != count;
}

static int connects(const char *ip, const char *port, int count, int interval_us) {
    struct target target = parse_target(ip, port);
    double started = now_ms(), slowest_dial = 0, slowest = 0;
    int failures = 0, last = 0;

    for (int i = 0; i < count; i++) {
        double begun = now_ms();
        int fd = dial(&target);
        slowest_dial = now_ms() - begun > slowest_dial ? now_ms() - begun : slowest_dial;
        errno = fd < 0 ? errno : 0;
        if (fd < 0 || one_request(fd, i)) {
            failures++;
            last = errno;
        }
        slowest = now_ms() - begun > slowest ? now_ms() - begun : slowest;
        if (fd >= 0)
            close(fd);
        usleep(interval_us);
    }
    printf("{\"ok\":%s,\"done\":%d,\"failures\":%d,\"error\":\"%s\",\"slowestDialMs\":%.1f,\"slowestMs\":%.1f,\"ms\":%."
           "1f}\n",
           failures ? "false" : "true", count, failures, error_name(last), slowest_dial, slowest, now_ms() - started);
    return failures > 0;
}

/* Again and again from one local port, each connection closed by the other side first. */
static int reuse(const char *ip, const char *port, int from, int count) {
    struct target target = parse_target(ip, port);
    struct target local = parse_target(target.family == AF_INET6 ? "::" : "0.0.0.0", "0");
    double started = now_ms(), slowest = 0;
    int failures = 0, last = 0, on = 1;

    ((struct sockaddr_in *)&local.address)->sin_port = htons(from); /* at the same place in both families */
    for (int i = 0; i < count; i++) {
        double begun = now_ms();
        uint64_t sum;
        int fd = socket(target.family, SOCK_STREAM, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        if (bind(fd, (struct sockaddr *)&local.address, local.length) ||
            connect(fd, (struct sockaddr *)&target.address, target.length) || send_all(fd, "send 8\n", 7) ||
            receive_stream(fd, &sum) != 8) {
            failures++;
            last = errno;
        }
        close(fd);
        slowest = now_ms() - begun > slowest ? now_ms() - begun : slowest;
        usleep(50000);
    }
    printf("{\"ok\":%s,\"done\":%d,\"failures\":%d,\"error\":\"%s\",\"slowestMs\":%.1f,\"ms\":%.1f}\n",
           failures ? "false" : "true", count, failures, error_name(last), slowest, now_ms() - started);
    return failures > 0;
}

/* How many requests took so many tenths of a millisecond; those of a second and more are together in the last. */
static unsigned took[10001];

static void count_request(double ms) {
    took[ms < 1000 ? (int)(ms * 10) : 10000]++;
}

/* At least this share of `done` requests was no slower; `slowest` where that is a second or more. */
static double percentile(double share, int done, double slowest) {
    unsigned seen = 0;

    for (int tenths = 0; tenths < 10000; tenths++) {
        seen += took[tenths];
        if (seen >= share * done)
            return (tenths + 1) / 10.0 < slowest ? (tenths + 1) / 10.0 : slowest;
    }
    return slowest;
}

/* Traffic without an end: requests over one connection, or a connection for each (`connects`), or connections without
 * a request (`handshakes`, which no proxy can delay by a question of its own). For every byte by which
 * the file `control` grows it tells what has been since the last time, and begins anew; a `q` in it ends it. */
static int load(const char *kind, const char *ip, const char *port, int interval_us, const char *control) {
    struct target target = parse_target(ip, port);
    int asks = strcmp(kind, "handshakes") != 0, each = strcmp(kind, "keepalive") != 0, fd = -1, done = 0, failures = 0,
        last = 0, ending = 0;
    FILE *file = fopen(control, "r");
    double slowest_dial = 0, slowest = 0;

    if (!file)
        return failed("control file", errno, now_ms());
    while (!ending) {
        double begun = now_ms();
        if (fd < 0) {
            fd = dial(&target);
            slowest_dial = now_ms() - begun > slowest_dial ? now_ms() - begun : slowest_dial;
        }
        errno = fd < 0 ? errno : 0;
        int bad = fd < 0 || (asks && one_request(fd, done));
        failures += bad;
        last = bad ? errno : last;
        done++;
        double ms = now_ms() - begun;
        count_request(ms);
        slowest = ms > slowest ? ms : slowest;
        if (fd >= 0 && (each || bad)) {
            close(fd);
            fd = -1;
        }
        for (int byte; (byte = fgetc(file)) != EOF;) {
            printf("{\"done\":%d,\"failures\":%d,\"error\":\"%s\",\"slowestDialMs\":%.1f,\"slowestMs\":%.1f,"
                   "\"p50Ms\":%.1f,\"p99Ms\":%.1f}\n",
                   done, failures, error_name(last), slowest_dial, slowest, percentile(0.5, done, slowest),
                   percentile(0.99, done, slowest));
            fflush(stdout);
            memset(took, 0, sizeof(took));
            done = failures = last = 0;
            slowest_dial = slowest = 0;
            ending = ending || byte == 'q';
        }
        clearerr(file);
        usleep(interval_us);
    }
    return 0;
}

/* Is answered once, and then ends the connection by a reset, or asks the server for one. */
static int abort_one(const char *ip, const char *port, int by_server) {
    struct target target = parse_target(ip, port);
    double started = now_ms();
    char byte;
    int fd = dial(&target);

    if (fd < 0)
        return failed("connect", errno, started);
    if (one_request(fd, 0))
        return failed("request", errno, started);
    if (!by_server) {
        abort_connection(fd);
        puts("{\"ok\":true}");
        return 0;
    }
    errno = 0;
    ssize_t got = send_all(fd, "abort\n", 6) ? -1 : recv(fd, &byte, 1, 0);
    printf("{\"ok\":true,\"got\":%zd,\"error\":\"%s\"}\n", got, error_name(errno));
    return 0;
}

/* Both ends say that they have no more, each at its own time; the state tells who was first (tcp_states.h). */
static int end_both(const char *ip, const char *port, int server_ms, int own_ms) {
    struct target target = parse_target(ip, port);
    double started = now_ms();
    struct tcp_info info = {};
    socklen_t length = sizeof(info);
    char line[32], byte;
    int fd = dial(&target);

    if (fd < 0)
        return failed("connect", errno, started);
    snprintf(line, sizeof(line), "end %d\n", server_ms);
    if (send_all(fd, line, strlen(line)))
        return failed("send", errno, started);
    usleep(own_ms * 1000);
    getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
    shutdown(fd, SHUT_WR);
    errno = 0;
    ssize_t got = recv(fd, &byte, 1, 0);
    printf("{\"ok\":%s,\"got\":%zd,\"error\":\"%s\",\"stateBefore\":%d}\n", got == 0 ? "true" : "false", got,
           error_name(errno), info.tcpi_state);
    return got != 0;
}

/* So many connections at once, each of which is answered when it is new and again once all are there. */
static int many(const char *ip, const char *port, int count) {
    struct target target = parse_target(ip, port);
    double started = now_ms();
    int *open = calloc(count, sizeof(*open));

    for (int i = 0; i < count; i++) {
        open[i] = dial(&target);
        if (open[i] < 0 || one_request(open[i], i))
            return failed("a new one", errno, started);
    }
    for (int i = 0; i < count; i++)
        if (one_request(open[i], i))
            return failed("an old one", errno, started);
    printf("{\"ok\":true,\"open\":%d,\"ms\":%.1f}\n", count, now_ms() - started);
    return 0;
}

/* One connection, opened before anything changes, with a request whenever the file `go` grows by one byte. */
static int hold(const char *ip, const char *port, const char *control) {
    struct target target = parse_target(ip, port);
    double started = now_ms();
    int fd = dial(&target);
    long served = 0;

    if (fd < 0)
        return failed("connect", errno, started);
    printf("{\"ok\":true,\"localPort\":%d}\n", local_port(fd));
    fflush(stdout);
    for (;;) {
        FILE *file = fopen(control, "r");
        long wanted = 0;
        if (file) {
            fseek(file, 0, SEEK_END);
            wanted = ftell(file);
            fclose(file);
        }
        for (; served < wanted; served++) {
            errno = 0;
            int ok = one_request(fd, (int)served) == 0;
            printf("{\"ok\":%s,\"request\":%ld,\"error\":\"%s\"}\n", ok ? "true" : "false", served, error_name(errno));
            fflush(stdout);
            if (!ok)
                return 1;
        }
        usleep(20000);
    }
}

/* Dials every one of these addresses again and again, whether or not anybody is there; never ends. */
static int knock(const char *port, int count, char **ips) {
    static struct pollfd open[1024];

    if (count < 1 || count > 1024)
        return 2;
    puts("{\"ok\":true}");
    fflush(stdout);
    for (;;) {
        for (int i = 0; i < count; i++) {
            struct target target = parse_target(ips[i], port);
            struct linger at_once = {.l_onoff = 1};

            open[i] = (struct pollfd){.fd = socket(target.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0),
                                      .events = POLLOUT};
            setsockopt(open[i].fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
            connect(open[i].fd, (struct sockaddr *)&target.address, target.length);
        }
        usleep(20000);
        for (int i = 0; i < count; i++)
            close(open[i].fd);
    }
}

/* --- a proxy that asks by getsockopt ---------------------------------------------------------------------------- */

static void option_text(char *line, size_t size, const char *name, int fd, int level, int option, socklen_t room) {
    char value[2048] = "";
    socklen_t length = room;
    size_t used = strlen(line);

    if (getsockopt(fd, level, option, value, &length))
        snprintf(line + used, size - used, ",\"%s\":\"%s\"", name, error_name(errno));
    else
        snprintf(line + used, size - used, ",\"%s\":\"%.*s\"", name, (int)length, value);
}

static void option_end(char *line, size_t size, const char *name, int fd, int option, socklen_t room) {
    struct nodesentry_end end = {};
    socklen_t length = room;
    size_t used = strlen(line);

    if (getsockopt(fd, SOL_NODESENTRY, option, &end, &length)) {
        snprintf(line + used, size - used, ",\"%s\":\"%s\"", name, error_name(errno));
        return;
    }
    snprintf(line + used, size - used,
             ",\"%s\":{\"version\":%d,\"size\":%d,\"length\":%d,\"direction\":%d,\"assurance\":%d,\"runtime\":%d,"
             "\"generation\":%u,\"uid\":\"%s\",\"namespace\":\"%s\",\"name\":\"%s\",\"serviceAccount\":\"%s\","
             "\"app\":\"%s\",\"instance\":\"%s\"}",
             name, end.version, end.size, length, end.direction, end.assurance, end.runtime, end.generation,
             end.pod_uid, end.pod_namespace, end.pod_name, end.service_account, end.app, end.instance);
}

static void option_address(char *line, size_t size, const char *name, int fd, int level, socklen_t room) {
    struct sockaddr_storage address = {};
    socklen_t length = room;
    char text[INET6_ADDRSTRLEN] = "";
    size_t used = strlen(line);

    if (getsockopt(fd, level, 80 /* SO_ORIGINAL_DST */, &address, &length)) {
        snprintf(line + used, size - used, ",\"%s\":\"%s\"", name, error_name(errno));
        return;
    }
    if (level == IPPROTO_IP)
        inet_ntop(AF_INET, &((struct sockaddr_in *)&address)->sin_addr, text, sizeof(text));
    else
        inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&address)->sin6_addr, text, sizeof(text));
    snprintf(line + used, size - used, ",\"%s\":\"%s %d %d\"", name, text,
             ntohs(level == IPPROTO_IP ? ((struct sockaddr_in *)&address)->sin_port
                                       : ((struct sockaddr_in6 *)&address)->sin6_port),
             length);
}

/* What a getsockopt costs, in nanoseconds; -1 where it is refused. */
static double option_cost(int fd, int level, int option, socklen_t room, int count) {
    char value[2048];
    double started = now_ms();

    for (int i = 0; i < count; i++) {
        socklen_t length = room;

        if (getsockopt(fd, level, option, value, &length))
            return -1;
    }
    return (now_ms() - started) * 1e6 / count;
}

/* Any option, into a buffer of any length: bytes behind it stay as they were, and no length is answered that was not
 * given. Returns how many were answered, or -1 where one was wrong. */
static int option_fuzz(int fd, int count) {
    static unsigned char value[4096];
    uint64_t state = SEED, word;
    int answered = 0;

    for (int i = 0; i < count; i++) {
        fill(&word, 1, &state);
        int levels[] = {SOL_NODESENTRY, IPPROTO_IP, IPPROTO_IPV6, (int)(word >> 40)};
        int level = levels[word & 3], option = (word >> 2) & 1 ? (int)((word >> 3) & 7) : (int)((word >> 3) & 127);
        socklen_t room = (word >> 12) % 1500, length = room;

        memset(value, 0xa5, sizeof(value));
        if (getsockopt(fd, level, option, value, &length))
            continue;
        answered++;
        if (level == SOL_NODESENTRY && length > room)
            return -1;
        for (socklen_t at = room; at < sizeof(value); at++)
            if (value[at] != 0xa5)
                return -1;
    }
    return answered;
}

static void option_costs(char *line, size_t size, int fd) {
    enum { COUNT = 300000 };

    snprintf(line, size, "{\"ok\":true,\"SO_TYPE\":%.0f,\"id\":%.0f,\"end\":%.0f,\"originalDst\":%.0f}\n",
             option_cost(fd, SOL_SOCKET, SO_TYPE, sizeof(int), COUNT),
             option_cost(fd, SOL_NODESENTRY, NODESENTRY_PEER_ID, NODESENTRY_SPIFFE_MAX, COUNT),
             option_cost(fd, SOL_NODESENTRY, NODESENTRY_PEER, sizeof(struct nodesentry_end), COUNT),
             option_cost(fd, IPPROTO_IP, 80, sizeof(struct sockaddr_in), COUNT));
}

/* Answers each connection with what the options say of it, as one line, or, asked so, with what they cost. */
static int tell_options(int count, char **words, int costs) {
    struct pollfd listeners[8];

    if (count < 2 || count > 16 || count % 2)
        return 2;
    for (int i = 0; i < count / 2; i++) {
        struct target at = parse_target(words[2 * i], words[2 * i + 1]);
        int fd = socket(at.family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        if (bind(fd, (struct sockaddr *)&at.address, at.length) || listen(fd, 128)) {
            perror("listen");
            return 1;
        }
        listeners[i] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    puts("{\"ok\":true,\"serving\":true}");
    fflush(stdout);
    for (;;) {
        if (poll(listeners, count / 2, -1) < 0)
            continue;
        for (int i = 0; i < count / 2; i++) {
            char line[8192] = "{\"ok\":true";
            int fd = listeners[i].revents & POLLIN ? accept(listeners[i].fd, NULL, NULL) : -1;

            if (fd < 0)
                continue;
            /* Before the client has said anything, and after. */
            option_text(line, sizeof(line), "peerIdAtOnce", fd, SOL_NODESENTRY, NODESENTRY_PEER_ID, 1024);
            char hello[64];
            int fuzz;
            if (read_line(fd, hello, sizeof(hello)) < 0) {
                close(fd);
                continue;
            }
            if (costs) {
                option_costs(line, sizeof(line), fd);
                send_all(fd, line, strlen(line));
                close(fd);
                continue;
            }
            if (sscanf(hello, "fuzz %d", &fuzz) == 1) {
                snprintf(line, sizeof(line), "{\"ok\":true,\"answered\":%d}\n", option_fuzz(fd, fuzz));
                send_all(fd, line, strlen(line));
                close(fd);
                continue;
            }
            option_text(line, sizeof(line), "peerId", fd, SOL_NODESENTRY, NODESENTRY_PEER_ID, NODESENTRY_SPIFFE_MAX);
            option_text(line, sizeof(line), "peerIdInSmall", fd, SOL_NODESENTRY, NODESENTRY_PEER_ID, 20);
            option_text(line, sizeof(line), "peerIdInNone", fd, SOL_NODESENTRY, NODESENTRY_PEER_ID, 0);
            option_text(line, sizeof(line), "targetId", fd, SOL_NODESENTRY, NODESENTRY_TARGET_ID, 1024);
            option_text(line, sizeof(line), "unknown", fd, SOL_NODESENTRY, 99, 1024);
            option_end(line, sizeof(line), "peer", fd, NODESENTRY_PEER, sizeof(struct nodesentry_end));
            option_end(line, sizeof(line), "peerInSmall", fd, NODESENTRY_PEER, sizeof(struct nodesentry_end) - 1);
            option_end(line, sizeof(line), "target", fd, NODESENTRY_TARGET, sizeof(struct nodesentry_end));
            option_address(line, sizeof(line), "dialled4", fd, IPPROTO_IP, sizeof(struct sockaddr_storage));
            option_address(line, sizeof(line), "dialled6", fd, IPPROTO_IPV6, sizeof(struct sockaddr_storage));
            option_address(line, sizeof(line), "dialledInSmall", fd, IPPROTO_IP, 4);
            size_t used = strlen(line);
            snprintf(line + used, sizeof(line) - used, "}\n");
            send_all(fd, line, strlen(line));
            close(fd);
        }
    }
}

/* --- spoofing --------------------------------------------------------------------------------------------------- */

static uint16_t checksum(uint32_t sum, const void *data, size_t length) {
    const uint8_t *bytes = data;

    for (size_t i = 0; i < length; i++)
        sum += i % 2 ? bytes[i] : bytes[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

/* Puts the address on eth0 and dials from it. */
static int impersonate(const char *source, struct target *to, const char *port, int count) {
    struct target from = parse_target(source, "0");
    char prefix[64];
    pid_t child = fork();
    int sent = 0;

    snprintf(prefix, sizeof(prefix), "%s/128", source);
    if (child == 0) {
        execl("/bin/busybox", "ip", "-6", "addr", "add", prefix, "dev", "eth0", (char *)NULL);
        _exit(127);
    }
    waitpid(child, NULL, 0);
    ((struct sockaddr_in6 *)&to->address)->sin6_port = htons(atoi(port));
    for (int i = 0; i < count; i++) {
        int fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (bind(fd, (struct sockaddr *)&from.address, from.length) == 0 &&
            connect(fd, (struct sockaddr *)&to->address, to->length) && errno == EINPROGRESS)
            sent++;
    }
    usleep(200000); /* the SYNs leave before the sockets go */
    return sent;
}

/* Raw SYNs under somebody else's address, with right checksums. */
static int spoof(const char *source, const char *ip, const char *port, int count) {
    struct target to = parse_target(ip, port), from = parse_target(source, "44444");
    int v6 = to.family == AF_INET6, on = 1;
    int fd = socket(to.family, SOCK_RAW, IPPROTO_RAW);
    unsigned char packet[80] = {};
    size_t header = v6 ? 40 : 20;
    struct tcphdr *tcp = (struct tcphdr *)(packet + header);
    int sent = 0;

    if (fd < 0)
        return failed("socket", errno, now_ms());
    setsockopt(fd, v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? 36 /* IPV6_HDRINCL */ : IP_HDRINCL, &on, sizeof(on));
    tcp->source = htons(44444);
    tcp->dest = htons(atoi(port));
    tcp->seq = htonl(12345);
    tcp->doff = 5;
    tcp->syn = 1;
    tcp->window = htons(64240);
    if (v6) {
        struct ip6_hdr *ip6 = (struct ip6_hdr *)packet;
        ip6->ip6_vfc = 0x60;
        ip6->ip6_plen = htons(20);
        ip6->ip6_nxt = IPPROTO_TCP;
        ip6->ip6_hlim = 64;
        ip6->ip6_src = ((struct sockaddr_in6 *)&from.address)->sin6_addr;
        ip6->ip6_dst = ((struct sockaddr_in6 *)&to.address)->sin6_addr;
        tcp->check = htons(~checksum(checksum(IPPROTO_TCP + 20, &ip6->ip6_src, 32), tcp, 20));
        ((struct sockaddr_in6 *)&to.address)->sin6_port = 0;
    } else {
        struct iphdr *ip4 = (struct iphdr *)packet;
        ip4->version = 4;
        ip4->ihl = 5;
        ip4->tot_len = htons(40);
        ip4->ttl = 64;
        ip4->protocol = IPPROTO_TCP;
        ip4->saddr = ((struct sockaddr_in *)&from.address)->sin_addr.s_addr;
        ip4->daddr = ((struct sockaddr_in *)&to.address)->sin_addr.s_addr;
        ip4->check = htons(~checksum(0, ip4, 20));
        tcp->check = htons(~checksum(checksum(IPPROTO_TCP + 20, &ip4->saddr, 8), tcp, 20));
    }
    for (int i = 0; i < count; i++)
        sent += sendto(fd, packet, header + 20, 0, (struct sockaddr *)&to.address, to.length) > 0;
    if (sent == 0 && errno == EINVAL) /* gVisor cannot write IPv6 headers, but can take another's address */
        sent = impersonate(source, &to, port, count);
    printf("{\"ok\":%s,\"sent\":%d,\"error\":\"%s\"}\n", sent == count ? "true" : "false", sent,
           error_name(sent == count ? 0 : errno));
    return sent != count;
}

static _Noreturn void pause_forever(void) {
    for (;;) {
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        sleep(1);
    }
}

/* Dials before it does anything else, all targets at once and again where it was refused, then stays. */
static _Noreturn int first(int count, char **targets) {
    for (int i = 0; i < count; i += 2) {
        if (i + 2 < count && fork() != 0)
            continue;
        while (say_hello(targets[i], targets[i + 1]))
            usleep(50000);
        break;
    }
    pause_forever();
}

/* --- frames ----------------------------------------------------------------------------------------------------- */

static int open_link(const char *name) {
    struct sockaddr_ll link = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    int fd = socket(AF_PACKET, SOCK_RAW, 0), bytes = 8 << 20;

    link.sll_ifindex = if_nametoindex(name);
    if (fd < 0 || link.sll_ifindex == 0 || bind(fd, (struct sockaddr *)&link, sizeof(link)) < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes));
    return fd;
}

/* The next frame on stdin, a line of hexadecimal digits; 0 at the end. */
static size_t next_frame(unsigned char *frame, size_t room) {
    static char line[2 * CHUNK];
    size_t length = 0;
    unsigned int byte;

    if (!fgets(line, sizeof(line), stdin))
        return 0;
    for (char *at = line; length < room && sscanf(at, "%2x", &byte) == 1; at += 2)
        frame[length++] = byte;
    return length;
}

/* Sends frames as they are, headers and all: what a program with CAP_NET_RAW can do. */
static int frames(const char *name) {
    static unsigned char frame[CHUNK];
    int fd = open_link(name), sent = 0, refused = 0;
    size_t length;

    if (fd < 0)
        return failed("link", errno, now_ms());
    while ((length = next_frame(frame, sizeof(frame))) > 0) {
        if (send(fd, frame, length, 0) == (ssize_t)length)
            sent++;
        else
            refused++;
    }
    printf("{\"ok\":true,\"sent\":%d,\"refused\":%d}\n", sent, refused);
    return 0;
}

static void change_port(unsigned char *tcp, size_t offset, uint16_t port) {
    uint16_t before = tcp[offset] << 8 | tcp[offset + 1];
    uint32_t sum = (uint16_t) ~(tcp[16] << 8 | tcp[17]);

    sum += (uint16_t)~before + port; /* RFC 1624 */
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    tcp[offset] = port >> 8;
    tcp[offset + 1] = port;
    tcp[16] = (uint16_t)~sum >> 8;
    tcp[17] = ~sum;
}

/* The frame on stdin, a TCP segment over IPv4 without options, again and again from other ports to other ports. */
static int flood(const char *name, int count) {
    unsigned char frame[1514];
    int fd = open_link(name), sent = 0;
    size_t length = next_frame(frame, sizeof(frame));

    if (fd < 0 || length < 54)
        return failed("link", errno, now_ms());
    for (int i = 0; i < count; i++) {
        change_port(frame + 34, 0, 1024 + i % 64000);
        change_port(frame + 34, 2, 80 + i / 64000);
        while (send(fd, frame, length, 0) < 0 && errno == ENOBUFS)
            usleep(100);
        sent++;
    }
    printf("{\"ok\":true,\"sent\":%d}\n", sent);
    return 0;
}

int main(int count, char **words) {
    const char *command = count > 1 ? words[1] : "";

    signal(SIGPIPE, SIG_IGN);
    if (getenv("NODESENTRY_TEST_PATIENCE"))
        patience = atoi(getenv("NODESENTRY_TEST_PATIENCE"));
    if (strcmp(command, "pause") == 0)
        pause_forever();
    if (strcmp(command, "exec") == 0 && count > 2) {
        execv(words[2], words + 2);
        return failed("exec", errno, now_ms());
    }
    if (strcmp(command, "serve") == 0 && count > 2)
        return serve(count - 2, words + 2, 0);
    if (strcmp(command, "server") == 0 && count > 2)
        return serve(count - 2, words + 2, 1);
    if (strcmp(command, "first") == 0 && count > 3 && count % 2 == 0)
        return first(count - 2, words + 2);
    if (strcmp(command, "dial") == 0 && count == 4)
        return say_hello(words[2], words[3]);
    if (strcmp(command, "request") == 0 && count >= 4)
        return request(words[2], words[3], count - 4, words + 4);
    if (strcmp(command, "fetch") == 0 && count == 5)
        return fetch(words[2], words[3], words[4]);
    if (strcmp(command, "push") == 0 && count == 5)
        return push(words[2], words[3], words[4]);
    if (strcmp(command, "keepalive") == 0 && count == 6)
        return keepalive(words[2], words[3], atoi(words[4]), atoi(words[5]));
    if (strcmp(command, "connects") == 0 && count == 6)
        return connects(words[2], words[3], atoi(words[4]), atoi(words[5]));
    if (strcmp(command, "load") == 0 && count == 7)
        return load(words[2], words[3], words[4], atoi(words[5]), words[6]);
    if (strcmp(command, "reuse") == 0 && count == 6)
        return reuse(words[2], words[3], atoi(words[4]), atoi(words[5]));
    if (strcmp(command, "abort") == 0 && count == 5)
        return abort_one(words[2], words[3], strcmp(words[4], "server") == 0);
    if (strcmp(command, "end") == 0 && count == 6)
        return end_both(words[2], words[3], atoi(words[4]), atoi(words[5]));
    if (strcmp(command, "many") == 0 && count == 5)
        return many(words[2], words[3], atoi(words[4]));
    if (strcmp(command, "hold") == 0 && count == 5)
        return hold(words[2], words[3], words[4]);
    if (strcmp(command, "options") == 0)
        return tell_options(count - 2, words + 2, 0);
    if (strcmp(command, "bare-cost") == 0) {
        printf("{\"ok\":true,\"SO_TYPE\":%.0f}\n",
               option_cost(socket(AF_INET, SOCK_STREAM, 0), SOL_SOCKET, SO_TYPE, sizeof(int), 300000));
        return 0;
    }
    if (strcmp(command, "option-costs") == 0)
        return tell_options(count - 2, words + 2, 1);
    if (strcmp(command, "knock") == 0 && count > 3)
        return knock(words[2], count - 3, words + 3);
    if (strcmp(command, "frames") == 0 && count == 3)
        return frames(words[2]);
    if (strcmp(command, "flood") == 0 && count == 4)
        return flood(words[2], atoi(words[3]));
    if (strcmp(command, "spoof") == 0 && count == 6)
        return spoof(words[2], words[3], words[4], atoi(words[5]));
    if (strcmp(command, "serve-datagrams") == 0 && count > 3 && count % 2 == 0)
        return serve_datagrams(count - 2, words + 2);
    if (strcmp(command, "ask-datagram") == 0 && (count == 4 || count == 5))
        return ask_datagram(words[2], words[3], count == 5 ? words[4] : NULL, TIMEOUT_MS / 10 * patience);
    if (strcmp(command, "look-up") == 0 && count == 5)
        return look_up(words[2], words[3], words[4], TIMEOUT_MS / 4 * patience);
    if (strcmp(command, "datagrams") == 0 && (count == 7 || count == 8))
        return count_datagrams(words[2], words[3], atol(words[4]), atoi(words[5]), atoi(words[6]), count == 8);
    fprintf(stderr,
            "usage: app pause | exec PATH WORD... | serve|server PORT... | first {IP PORT}... | dial IP PORT | "
            "fetch|push IP PORT BYTES |\n"
            "           request IP PORT HEADER... |\n"
            "           keepalive|connects IP PORT COUNT INTERVAL_US | reuse IP PORT LOCALPORT COUNT |\n"
            "           load KIND IP PORT INTERVAL_US FILE | hold IP PORT FILE | many IP PORT COUNT |\n"
            "           abort IP PORT client|server | end IP PORT SERVER_MS OWN_MS | options|option-costs {IP PORT}... "
            "| knock PORT "
            "IP... | spoof SRC IP PORT "
            "COUNT "
            "| frames LINK | flood LINK COUNT |\n"
            "           serve-datagrams {IP PORT}... | ask-datagram IP PORT [LOCALPORT] | look-up SERVER PORT NAME | "
            "datagrams IP PORT COUNT BYTES "
            "INTERVAL_US [segmented]\n");
    return 2;
}
