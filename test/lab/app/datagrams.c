/* Datagrams of the lab's application: a server that sends each one back, and a client that counts what comes back. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "datagrams.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

#define MOST_SERVED 16
#define MOST_BYTES 65507
#define ROOM (4 << 20)
#define LAST_WAIT_MS 2000
#define SEGMENTS 8

union endpoint {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static socklen_t parse(const char *ip, const char *port, union endpoint *to) {
    memset(to, 0, sizeof(*to));
    if (inet_pton(AF_INET, ip, &to->v4.sin_addr) == 1) {
        to->v4.sin_family = AF_INET;
        to->v4.sin_port = htons(atoi(port));
        return sizeof(to->v4);
    }
    if (inet_pton(AF_INET6, ip, &to->v6.sin6_addr) != 1) {
        fprintf(stderr, "not an IP address: %s\n", ip);
        exit(2);
    }
    to->v6.sin6_family = AF_INET6;
    to->v6.sin6_port = htons(atoi(port));
    return sizeof(to->v6);
}

/* Beyond net.core.rmem_max where that is allowed. */
static void make_room(int fd) {
    int room = ROOM;

    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)))
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
}

static int bound(const char *ip, const char *port) {
    union endpoint own;
    socklen_t length = parse(ip, port, &own);
    int fd = socket(own.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0), on = 1;

    make_room(fd);
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    if (fd < 0 || bind(fd, &own.any, length)) {
        perror("bind");
        exit(1);
    }
    return fd;
}

/* What begins with "who" is answered by whom it came from, all else by itself. */
static void answer(int fd) {
    static char data[MOST_BYTES];
    char text[INET6_ADDRSTRLEN];
    union endpoint from;
    socklen_t length = sizeof(from);
    ssize_t got = recvfrom(fd, data, sizeof(data), 0, &from.any, &length);

    if (got >= 3 && memcmp(data, "who", 3) == 0) {
        int is_v6 = from.any.sa_family == AF_INET6;
        inet_ntop(from.any.sa_family, is_v6 ? (void *)&from.v6.sin6_addr : (void *)&from.v4.sin_addr, text,
                  sizeof(text));
        got = snprintf(data, sizeof(data), is_v6 ? "[%s]:%d" : "%s:%d", text,
                       ntohs(is_v6 ? from.v6.sin6_port : from.v4.sin_port));
    }
    if (got >= 0)
        sendto(fd, data, got, 0, &from.any, length);
}

int serve_datagrams(int count, char **words) {
    struct pollfd fds[MOST_SERVED] = {};
    int served = 0;

    for (; served < MOST_SERVED && served * 2 + 1 < count; served++)
        fds[served] = (struct pollfd){.fd = bound(words[served * 2], words[served * 2 + 1]), .events = POLLIN};
    printf("{\"serving\":true}\n");
    fflush(stdout);
    for (;;) {
        poll(fds, served, -1);
        for (int i = 0; i < served; i++) {
            if (fds[i].revents)
                answer(fds[i].fd);
        }
    }
}

static int port_of(int fd) {
    union endpoint own;
    socklen_t length = sizeof(own);

    getsockname(fd, &own.any, &length);
    return ntohs(own.any.sa_family == AF_INET6 ? own.v6.sin6_port : own.v4.sin_port);
}

static int connected(const char *ip, const char *port, const char *from_port) {
    union endpoint to, own = {};
    socklen_t length = parse(ip, port, &to);
    int fd = socket(to.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    make_room(fd);
    if (from_port) {
        own.any.sa_family = to.any.sa_family;
        *(to.any.sa_family == AF_INET6 ? &own.v6.sin6_port : &own.v4.sin_port) = htons(atoi(from_port));
        if (bind(fd, &own.any, length))
            perror("bind");
    }
    if (fd < 0 || connect(fd, &to.any, length)) {
        printf("{\"ok\":false,\"failed\":\"connect\",\"error\":\"%s\"}\n", strerrorname_np(errno));
        exit(1);
    }
    return fd;
}

/* Asks whom the server sees. A connected socket is given what comes from there and from nobody else. */
int ask_datagram(const char *ip, const char *port, const char *from_port, int wait_ms) {
    int fd = connected(ip, port, from_port);
    char data[256];
    struct pollfd readable = {.fd = fd, .events = POLLIN};

    ssize_t got = send(fd, "who", 3, 0);
    if (got >= 0)
        got = poll(&readable, 1, wait_ms) == 1 ? recv(fd, data, sizeof(data) - 1, 0) : (errno = ETIMEDOUT, -1);
    if (got < 0) {
        printf("{\"ok\":false,\"localPort\":%d,\"error\":\"%s\"}\n", port_of(fd), strerrorname_np(errno));
        return 1;
    }
    data[got] = 0;
    printf("{\"ok\":true,\"localPort\":%d,\"peer\":\"%s\"}\n", port_of(fd), data);
    return 0;
}

/* Asks a server for the address of a name (RFC 1035): IPv4 where the server is asked over IPv4, else IPv6. */
int look_up(const char *server, const char *port, const char *name, int wait_ms) {
    unsigned char message[512] = {0x4e, 0x53, 1, 0, 0, 1};
    int fd = connected(server, port, NULL), is_v6 = strchr(server, ':') != NULL;
    size_t length = 12, at;
    char text[INET6_ADDRSTRLEN] = "";
    struct pollfd readable = {.fd = fd, .events = POLLIN};

    for (const char *label = name; *label;) {
        size_t size = strcspn(label, ".");
        if (size > 63 || length + size + 8 > sizeof(message))
            return 2;
        message[length++] = size;
        memcpy(message + length, label, size);
        length += size;
        label += size + (label[size] == '.');
    }
    memcpy(message + length, (unsigned char[]){0, 0, is_v6 ? 28 : 1, 0, 1}, 5);
    length += 5;
    ssize_t got = send(fd, message, length, 0);
    if (got >= 0)
        got = poll(&readable, 1, wait_ms) == 1 ? recv(fd, message, sizeof(message), 0) : (errno = ETIMEDOUT, -1);
    if (got < 0) {
        printf("{\"ok\":false,\"localPort\":%d,\"error\":\"%s\"}\n", port_of(fd), strerrorname_np(errno));
        return 1;
    }
    /* A name that points back, type, class, lifetime, length: the first answer follows the question. */
    at = length + 12;
    if (message[7] > 0 && (size_t)got >= at + (is_v6 ? 16 : 4))
        inet_ntop(is_v6 ? AF_INET6 : AF_INET, message + at, text, sizeof(text));
    printf("{\"ok\":true,\"localPort\":%d,\"answers\":%d,\"address\":\"%s\"}\n", port_of(fd), message[7], text);
    return 0;
}

struct tally {
    long received;
    long wrong;
    char *seen;
};

static void take(int fd, struct tally *tally, long count, int bytes) {
    static char data[MOST_BYTES];
    ssize_t got;
    long number;

    while ((got = recv(fd, data, sizeof(data), MSG_DONTWAIT)) >= 0) {
        memcpy(&number, data, sizeof(number));
        if (got != bytes || number < 0 || number >= count || tally->seen[number]) {
            tally->wrong++;
            continue;
        }
        tally->seen[number] = 1;
        tally->received++;
    }
}

static double clock_us(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

/* Sends `count` of `bytes` each, one every `interval_us`, and counts which come back. `segmented`: several by one call,
 * which the kernel takes apart (udp(7), UDP_SEGMENT). */
int count_datagrams(const char *ip, const char *port, long count, int bytes, int interval_us, int segmented) {
    int fd = connected(ip, port, NULL);
    struct tally tally = {.seen = calloc(count, 1)};
    static char data[MOST_BYTES];
    int at_once = segmented ? SEGMENTS : 1;
    long sent = 0, refused = 0;
    double next = clock_us();

    if (bytes < (int)sizeof(long) || bytes * at_once > MOST_BYTES)
        return 2;
    if (segmented && setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &bytes, sizeof(bytes))) {
        printf("{\"ok\":false,\"failed\":\"UDP_SEGMENT\",\"error\":\"%s\"}\n", strerrorname_np(errno));
        return 1;
    }
    while (sent < count) {
        for (int i = 0; i < at_once; i++) {
            long number = sent + i;
            memcpy(data + (long)i * bytes, &number, sizeof(number));
        }
        if (send(fd, data, (size_t)bytes * at_once, 0) < 0)
            refused++;
        sent += at_once;
        for (next += (double)interval_us * at_once; clock_us() < next;)
            take(fd, &tally, count, bytes);
    }
    for (double end = clock_us() + LAST_WAIT_MS * 1e3; tally.received < sent && clock_us() < end; usleep(1000))
        take(fd, &tally, count, bytes);
    printf("{\"ok\":true,\"localPort\":%d,\"sent\":%ld,\"received\":%ld,\"wrong\":%ld,\"refused\":%ld}\n", port_of(fd),
           sent, tally.received, tally.wrong, refused);
    return 0;
}
