// A proxy that needs no port of its own: it listens wherever the kernel lets it, tells the agent, and answers every
// connection with a word, the direction, and the address that was dialled.
//
//   cc -O2 -o announce announce.c
//   ./announce /run/nodesentry/announce.sock payments hello
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int fail(const char *what) {
    perror(what);
    exit(1);
}

static int listener(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 1024))
        fail("listening");
    return fd;
}

// One message with both descriptors, one answer.
static void announce(const char *path, const char *instance, const int fds[2]) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char text[256], answer[4096];
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {0};
    struct iovec part = {.iov_base = text};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    int agent = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (agent < 0 || connect(agent, (struct sockaddr *)&address, sizeof(address)))
        fail("connecting to the agent");
    part.iov_len =
        snprintf(text, sizeof(text), "{\"instance\": \"%s\", \"outbound\": [0], \"inbound\": [1]}", instance);
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(2 * sizeof(int));
    memcpy(CMSG_DATA(&control.header), fds, 2 * sizeof(int));
    if (sendmsg(agent, &message, 0) < 0)
        fail("announcing");
    ssize_t length = recv(agent, answer, sizeof(answer) - 1, 0);
    if (length <= 0)
        fail("waiting for the answer");
    answer[length] = 0;
    puts(answer);
    fflush(stdout);
    close(agent);
    if (!strstr(answer, "\"ok\":true"))
        exit(2);
}

static void serve(int fd, const char *word, const char *direction) {
    for (;;) {
        struct sockaddr_in dialled = {0};
        socklen_t length = sizeof(dialled);
        char ip[INET_ADDRSTRLEN];
        int connection = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

        if (connection < 0)
            continue;
        getsockname(connection, (struct sockaddr *)&dialled, &length);
        inet_ntop(AF_INET, &dialled.sin_addr, ip, sizeof(ip));
        dprintf(connection, "%s %s %s:%d\n", word, direction, ip, ntohs(dialled.sin_port));
        close(connection);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: announce SOCKET INSTANCE WORD\n");
        return 1;
    }
    int fds[2] = {listener(), listener()};

    announce(argv[1], argv[2], fds);
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); // the listener of a proxy that has died must not stay open
        serve(fds[1], argv[3], "inbound");
    }
    serve(fds[0], argv[3], "outbound");
}
