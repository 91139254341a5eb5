/* What applications do with a connection, and what came of it: `streams serve PORT` is the far end, every other command
 * dials it, prints one line of JSON and exits 0. Run by splice.test.ts with the splice and without: the lines have to
 * be the same. Each byte of a stream is told by its place in it, so that nothing can be lost, doubled or moved
 * unnoticed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (256 * 1024)
#define REQUEST 32
#define TAGS 4096

/* What a stream came to. */
struct stream {
    uint64_t bytes;
    bool wrong;
    int error; /* 0: an orderly end */
};

static bool is_blocking; /* recv(2) waits itself, rather than poll(2) */

/* As most programs do that have many connections. */
static ssize_t receive(int fd, void *bytes, size_t room, int flags) {
    struct pollfd one = {.fd = fd, .events = POLLIN};

    if (is_blocking)
        return recv(fd, bytes, room, flags);
    for (;;) {
        if (poll(&one, 1, 10000) == 0) {
            errno = EAGAIN;
            return -1;
        }
        ssize_t got = recv(fd, bytes, room, flags | MSG_DONTWAIT);
        if (got >= 0 || errno != EAGAIN)
            return got;
    }
}

static uint8_t at(uint64_t place) {
    return (uint8_t)((place * 2654435761u) >> 13);
}

static void fill(uint8_t *bytes, size_t count, uint64_t place) {
    for (size_t i = 0; i < count; i++)
        bytes[i] = at(place + i);
}

static void check(struct stream *stream, const uint8_t *bytes, size_t count) {
    for (size_t i = 0; i < count; i++)
        stream->wrong |= bytes[i] != at(stream->bytes + i);
    stream->bytes += count;
}

static const char *end_of(int error) {
    return error ? strerrorname_np(error) : "EOF";
}

static void sleep_ms(int ms) {
    usleep((useconds_t)ms * 1000);
}

static int64_t now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* The same numbers in every run. */
static uint32_t number(uint32_t *seed, uint32_t most) {
    *seed = *seed * 1664525 + 1013904223;
    return 1 + (*seed >> 8) % most;
}

/* Sends that many bytes of the pattern, in pieces of 1 to `most`; false with errno. */
static bool send_stream(int fd, uint64_t count, uint32_t most) {
    static uint8_t bytes[CHUNK];
    uint32_t seed = 1;

    for (uint64_t sent = 0; sent < count;) {
        size_t piece = number(&seed, most);
        if (piece > count - sent)
            piece = count - sent;
        fill(bytes, piece, sent);
        for (size_t done = 0; done < piece;) {
            ssize_t put = send(fd, bytes + done, piece - done, MSG_NOSIGNAL);
            if (put < 0)
                return false;
            done += put;
        }
        sent += piece;
    }
    return true;
}

/* Reads to the end of the stream, or up to `limit` bytes, in pieces of 1 to `most`. */
static struct stream read_stream(int fd, uint64_t limit, uint32_t most) {
    static uint8_t bytes[CHUNK];
    struct stream stream = {};
    uint32_t seed = 7;

    while (stream.bytes < limit) {
        size_t room = number(&seed, most);
        if (room > limit - stream.bytes)
            room = limit - stream.bytes;
        ssize_t got = receive(fd, bytes, room, 0);
        if (got < 0)
            stream.error = errno;
        if (got <= 0)
            break;
        check(&stream, bytes, got);
    }
    return stream;
}

/* --- the far end --- */

static struct {
    bool told;
    struct stream stream;
} * results; /* by tag, of all children */

static void echo(int fd) {
    static uint8_t bytes[CHUNK];
    ssize_t got;

    while ((got = receive(fd, bytes, sizeof(bytes), 0)) > 0)
        for (ssize_t done = 0; done < got;) {
            ssize_t put = send(fd, bytes + done, got - done, MSG_NOSIGNAL);
            if (put < 0)
                return;
            done += put;
        }
}

static void reset(int fd) {
    struct linger none = {.l_onoff = 1, .l_linger = 0};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
    close(fd);
}

static void pieces(int fd, uint64_t count) {
    uint8_t bytes[1000];

    for (uint64_t sent = 0; sent < count; sent += sizeof(bytes)) {
        fill(bytes, sizeof(bytes), sent);
        if (send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) < 0)
            return;
        sleep_ms(20);
    }
}

static void tell(int fd, int tag) {
    char line[128];

    for (int i = 0; i < 500 && !results[tag].told; i++)
        sleep_ms(10);
    struct stream *stream = &results[tag].stream;
    int length =
        snprintf(line, sizeof(line), "{\"bytes\":%llu,\"right\":%s,\"end\":\"%s\"}", (unsigned long long)stream->bytes,
                 stream->wrong ? "false" : "true", results[tag].told ? end_of(stream->error) : "none");
    send(fd, line, length, MSG_NOSIGNAL);
}

static void answer(int fd) {
    char request[REQUEST + 1] = "";
    char what[REQUEST + 1] = "";
    int tag = 0;
    unsigned long long count = 0;

    if (recv(fd, request, REQUEST, MSG_WAITALL) != REQUEST || sscanf(request, "%31s %d %llu", what, &tag, &count) != 3)
        return;
    tag &= TAGS - 1;
    if (!strcmp(what, "echo"))
        echo(fd);
    else if (!strcmp(what, "source"))
        send_stream(fd, count, CHUNK);
    else if (!strcmp(what, "pieces"))
        pieces(fd, count);
    else if (!strcmp(what, "result"))
        tell(fd, tag);
    else if (!strcmp(what, "reset")) {
        receive(fd, request, REQUEST, 0);
        reset(fd);
        return;
    } else { /* sink, slow, late: reads to the end, and tells what it got to who asks for the tag */
        if (!strcmp(what, "slow"))
            sleep_ms(1500);
        results[tag].stream = read_stream(fd, UINT64_MAX, CHUNK);
        results[tag].told = true;
        if (!strcmp(what, "late"))
            send_stream(fd, count, CHUNK);
    }
    shutdown(fd, SHUT_WR);
    while (receive(fd, request, REQUEST, 0) > 0)
        ;
    close(fd);
}

static int serve(int port) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int one = 1, zero = 0;
    int listener = socket(AF_INET6, SOCK_STREAM, 0);

    signal(SIGCHLD, SIG_IGN);
    results = mmap(NULL, sizeof(*results) * TAGS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 128)) {
        perror("streams serve");
        return 1;
    }
    puts("serving");
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        if (fork() == 0) {
            close(listener);
            answer(fd);
            _exit(0);
        }
        close(fd);
    }
}

/* --- the application --- */

static const char *far_ip, *far_port;

static int dial(void) {
    struct sockaddr_storage address = {};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&address;
    struct timeval limit = {.tv_sec = 10};
    bool is_v4 = inet_pton(AF_INET, far_ip, &v4->sin_addr) == 1;

    if (!is_v4)
        inet_pton(AF_INET6, far_ip, &v6->sin6_addr);
    address.ss_family = is_v4 ? AF_INET : AF_INET6;
    v4->sin_port = htons(atoi(far_port)); /* at the same place in both */
    int fd = socket(address.ss_family, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (connect(fd, (struct sockaddr *)&address, is_v4 ? sizeof(*v4) : sizeof(*v6))) {
        printf("{\"dial\":\"%s\"}\n", strerrorname_np(errno));
        exit(0);
    }
    return fd;
}

/* The request first, in a message of its own. */
static int ask(const char *what, int tag, unsigned long long count) {
    char request[REQUEST] = "";
    int fd = dial();

    snprintf(request, sizeof(request), "%s %d %llu", what, tag, count);
    send(fd, request, sizeof(request), MSG_NOSIGNAL);
    return fd;
}

static void print_stream(const struct stream *stream) {
    printf("{\"bytes\":%llu,\"right\":%s,\"end\":\"%s\"}\n", (unsigned long long)stream->bytes,
           stream->wrong ? "false" : "true", end_of(stream->error));
}

/* What the far end has got. */
static void print_result(int tag) {
    char line[256] = "";
    int fd = ask("result", tag, 0);

    for (ssize_t done = 0, got; (got = receive(fd, line + done, sizeof(line) - 1 - done, 0)) > 0;)
        done += got;
    puts(line);
}

/* Both directions at once. */
static void both(uint64_t count, uint32_t most) {
    int fd = ask("echo", 0, 0);

    if (fork() == 0) {
        send_stream(fd, count, most);
        shutdown(fd, SHUT_WR);
        _exit(0);
    }
    struct stream stream = read_stream(fd, UINT64_MAX, most);
    wait(NULL);
    print_stream(&stream);
}

static void talk(int rounds) {
    uint8_t out[400], in[400];
    struct stream stream = {};
    uint32_t seed = 3;
    int fd = ask("echo", 0, 0);

    for (int i = 0; i < rounds; i++) {
        size_t size = number(&seed, sizeof(out));
        fill(out, size, stream.bytes);
        send(fd, out, size, MSG_NOSIGNAL);
        for (size_t done = 0; done < size;) {
            ssize_t got = receive(fd, in, size - done, 0);
            if (got <= 0) {
                stream.error = got < 0 ? errno : EPIPE;
                print_stream(&stream);
                return;
            }
            check(&stream, in, got);
            done += got;
        }
    }
    print_stream(&stream);
}

/* Until it is over, or for so long. */
static void last(int ms) {
    uint8_t out[4000], in[4000];
    struct stream stream = {};
    int64_t until = now_ms() + ms;
    int fd = ask("echo", 0, 0);

    puts("running");
    fflush(stdout);
    while (now_ms() < until) {
        fill(out, sizeof(out), stream.bytes);
        if (send(fd, out, sizeof(out), MSG_NOSIGNAL) < 0) {
            stream.error = errno;
            break;
        }
        ssize_t got = 0;
        for (size_t done = 0; done < sizeof(in); done += got) {
            got = receive(fd, in, sizeof(in) - done, 0);
            if (got <= 0)
                break;
            check(&stream, in, got);
        }
        if (got <= 0) {
            stream.error = got < 0 ? errno : EPIPE;
            break;
        }
        sleep_ms(1);
    }
    printf("{\"right\":%s,\"end\":\"%s\",\"some\":%s}\n", stream.wrong ? "false" : "true",
           stream.error ? "broken" : "done", stream.bytes > 100000 ? "true" : "false");
}

static void half_close(void) {
    int fd = ask("late", 0, 1000000);

    send_stream(fd, 1000, 100);
    shutdown(fd, SHUT_WR);
    struct stream stream = read_stream(fd, UINT64_MAX, CHUNK);
    print_stream(&stream);
}

static void hang_up(void) {
    struct pollfd one = {.events = POLLIN | POLLRDHUP};
    int fd = ask("source", 0, 10);
    struct stream stream;

    one.fd = fd;
    sleep_ms(300);
    int ready = poll(&one, 1, 2000);
    stream = read_stream(fd, UINT64_MAX, 100);
    printf("{\"ready\":%d,\"in\":%d,\"rdhup\":%d,\"hup\":%d,\"bytes\":%llu,\"end\":\"%s\"}\n", ready,
           !!(one.revents & POLLIN), !!(one.revents & POLLRDHUP), !!(one.revents & POLLHUP),
           (unsigned long long)stream.bytes, end_of(stream.error));
}

static void is_reset(void) {
    int fd = ask("reset", 0, 0);

    send_stream(fd, 100, 100);
    struct stream stream = read_stream(fd, UINT64_MAX, CHUNK);
    print_stream(&stream);
}

static void resets(int tag) {
    int fd = ask("sink", tag, 0);

    send_stream(fd, 100000, CHUNK);
    sleep_ms(300);
    reset(fd);
    print_result(tag);
}

static void closes_with_bytes_unread(int tag) {
    int fd = ask("echo", tag, 0);

    send_stream(fd, 1000, 1000);
    sleep_ms(300);
    close(fd); /* a reset, for what nobody has read */
    int next = ask("sink", tag, 0);
    send_stream(next, 10, 10);
    shutdown(next, SHUT_WR);
    print_result(tag);
}

static void peeks(void) {
    uint8_t first[10] = "", again[20] = "";
    int waiting = 0;
    int fd = ask("echo", 0, 0);

    send_stream(fd, 1000, 1000);
    sleep_ms(300);
    ssize_t peeked = recv(fd, first, sizeof(first), MSG_PEEK);
    ssize_t more = recv(fd, again, sizeof(again), MSG_PEEK);
    ioctl(fd, FIONREAD, &waiting);
    shutdown(fd, SHUT_WR);
    struct stream stream = read_stream(fd, UINT64_MAX, 300);
    printf("{\"peeked\":%zd,\"more\":%zd,\"same\":%d,\"waiting\":%d,\"bytes\":%llu,\"right\":%d}\n", peeked, more,
           memcmp(first, again, sizeof(first)) == 0, waiting, (unsigned long long)stream.bytes, !stream.wrong);
}

static void waits_for_all(void) {
    uint8_t bytes[5000];
    int fd = ask("pieces", 0, sizeof(bytes));
    ssize_t got = recv(fd, bytes, sizeof(bytes), MSG_WAITALL);

    printf("{\"got\":%zd}\n", got);
}

/* Who has not asked for it gets urgent data in no other way than by SO_OOBINLINE: the far end's proxy counts. */
static void urgent(int tag) {
    int fd = ask("sink", tag, 0);

    send(fd, "0123456789", 10, 0);
    sleep_ms(100);
    send(fd, "!", 1, MSG_OOB);
    sleep_ms(100);
    send(fd, "0123456789", 10, 0);
    shutdown(fd, SHUT_WR);
    print_result(tag);
}

static int file_of(uint64_t count) {
    static uint8_t bytes[CHUNK];
    int fd = memfd_create("streams", 0);

    for (uint64_t done = 0; done < count; done += CHUNK) {
        fill(bytes, CHUNK, done);
        if (write(fd, bytes, CHUNK) != CHUNK)
            exit(1);
    }
    lseek(fd, 0, SEEK_SET);
    return fd;
}

static void sends_file(int tag) {
    uint64_t count = 16 * CHUNK;
    int file = file_of(count), fd = ask("sink", tag, 0);

    for (uint64_t done = 0; done < count;) {
        ssize_t put = sendfile(fd, file, NULL, count - done);
        if (put <= 0)
            break;
        done += put;
    }
    shutdown(fd, SHUT_WR);
    print_result(tag);
}

static void splices_out(int tag) {
    uint64_t count = 8 * CHUNK;
    int file = file_of(count), fd = ask("sink", tag, 0), ends[2];

    if (pipe(ends))
        exit(1);
    for (uint64_t done = 0; done < count;) {
        ssize_t got = splice(file, NULL, ends[1], NULL, 65536, 0);
        for (ssize_t put = 0, one; put < got; put += one)
            if ((one = splice(ends[0], NULL, fd, NULL, got - put, SPLICE_F_MORE)) <= 0)
                break;
        if (got <= 0)
            break;
        done += got;
    }
    shutdown(fd, SHUT_WR);
    print_result(tag);
}

static void splices_in(void) {
    static uint8_t bytes[65536];
    struct stream stream = {};
    int ends[2], fd = ask("source", 0, 4 * CHUNK);
    struct timeval limit = {.tv_sec = 2};

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (pipe(ends))
        exit(1);
    for (;;) {
        ssize_t got = splice(fd, NULL, ends[1], NULL, sizeof(bytes), 0);
        if (got < 0)
            stream.error = errno;
        if (got <= 0)
            break;
        if (read(ends[0], bytes, got) != got)
            exit(1);
        check(&stream, bytes, got);
    }
    print_stream(&stream);
}

/* The window is shut meanwhile. */
static void reads_late(int after_ms) {
    uint32_t memory[SK_MEMINFO_VARS] = {};
    socklen_t length = sizeof(memory);
    int fd = ask("source", 0, 64 * 1024 * 1024);

    sleep_ms(after_ms);
    getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &length);
    struct stream stream = read_stream(fd, UINT64_MAX, CHUNK);
    printf("{\"bounded\":%s,\"bytes\":%llu,\"right\":%s,\"end\":\"%s\"}\n",
           memory[SK_MEMINFO_RMEM_ALLOC] < 16 * 1024 * 1024 ? "true" : "false", (unsigned long long)stream.bytes,
           stream.wrong ? "false" : "true", end_of(stream.error));
}

static void writes_to_slow(int tag) {
    int fd = ask("slow", tag, 0);

    send_stream(fd, 64 * 1024 * 1024, CHUNK);
    shutdown(fd, SHUT_WR);
    print_result(tag);
}

static void never_blocks(uint64_t count) {
    static uint8_t out[CHUNK], in[CHUNK];
    struct stream stream = {};
    uint64_t sent = 0;
    int fd = ask("echo", 0, 0);

    fcntl(fd, F_SETFL, O_NONBLOCK);
    while (stream.bytes < count) {
        struct pollfd one = {.fd = fd, .events = POLLIN | (sent < count ? POLLOUT : 0)};
        if (poll(&one, 1, 5000) != 1) {
            stream.error = ETIMEDOUT;
            break;
        }
        if (one.revents & POLLOUT) {
            size_t piece = count - sent < sizeof(out) ? count - sent : sizeof(out);
            fill(out, piece, sent);
            ssize_t put = send(fd, out, piece, MSG_NOSIGNAL);
            sent += put > 0 ? put : 0;
        }
        if (one.revents & (POLLIN | POLLHUP | POLLERR)) {
            ssize_t got = recv(fd, in, sizeof(in), 0);
            if (got == 0 || (got < 0 && errno != EAGAIN)) {
                stream.error = got ? errno : EPIPE;
                break;
            }
            if (got > 0)
                check(&stream, in, got);
        }
    }
    print_stream(&stream);
}

static void tls(void) {
    struct stream stream;
    int fd = ask("echo", 0, 0);
    int refused = setsockopt(fd, SOL_TCP, TCP_ULP, "tls", 3) ? errno : 0;

    send_stream(fd, 10000, 1000);
    shutdown(fd, SHUT_WR);
    stream = read_stream(fd, UINT64_MAX, 1000);
    printf("{\"ulp\":\"%s\",\"bytes\":%llu,\"right\":%s}\n", refused ? strerrorname_np(refused) : "taken",
           (unsigned long long)stream.bytes, stream.wrong ? "false" : "true");
}

int main(int count, char **words) {
    const char *command = count > 1 ? words[1] : "";
    int tag = getpid();

    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(command, "serve") && count == 3)
        return serve(atoi(words[2]));
    if (count < 4) {
        fputs("usage: streams serve PORT | [blocking-]COMMAND IP PORT [MS]\n", stderr);
        return 2;
    }
    far_ip = words[2];
    far_port = words[3];
    tag &= TAGS - 1;
    is_blocking = !strncmp(command, "blocking-", 9);
    command += is_blocking ? 9 : 0;
    if (!strcmp(command, "both"))
        both(16 * 1024 * 1024, 100000);
    else if (!strcmp(command, "tiny"))
        both(20000, 3);
    else if (!strcmp(command, "talk"))
        talk(3000);
    else if (!strcmp(command, "last"))
        last(count > 4 ? atoi(words[4]) : 1000);
    else if (!strcmp(command, "half-close"))
        half_close();
    else if (!strcmp(command, "hang-up"))
        hang_up();
    else if (!strcmp(command, "is-reset"))
        is_reset();
    else if (!strcmp(command, "resets"))
        resets(tag);
    else if (!strcmp(command, "closes-with-bytes-unread"))
        closes_with_bytes_unread(tag);
    else if (!strcmp(command, "peeks"))
        peeks();
    else if (!strcmp(command, "waits-for-all"))
        waits_for_all();
    else if (!strcmp(command, "urgent"))
        urgent(tag);
    else if (!strcmp(command, "sendfile"))
        sends_file(tag);
    else if (!strcmp(command, "splices-out"))
        splices_out(tag);
    else if (!strcmp(command, "splices-in"))
        splices_in();
    else if (!strcmp(command, "reads-late"))
        reads_late(count > 4 ? atoi(words[4]) : 1500);
    else if (!strcmp(command, "writes-to-slow"))
        writes_to_slow(tag);
    else if (!strcmp(command, "never-blocks"))
        never_blocks(8 * 1024 * 1024);
    else if (!strcmp(command, "kTLS"))
        tls();
    else
        return 2;
    return 0;
}
