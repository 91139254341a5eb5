/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A proxy's part of the identity API in C: listens where nodesentry hands over what it intercepts, and says for each
 * connection, as a line, who has opened it and to where, before it answers with that line.
 *
 *     cc -O2 -D_GNU_SOURCE -I ../../../include -o who who.c && ./who 127.0.0.1 15001
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter_ipv4.h> /* SO_ORIGINAL_DST */
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <nodesentry.h>

static void answer(int fd) {
    char id[NODESENTRY_SPIFFE_MAX], to[INET_ADDRSTRLEN] = "-", line[2048];
    struct nodesentry_end peer = {0};
    struct sockaddr_in dialled = {0};
    socklen_t id_length = sizeof(id), length = sizeof(peer), dialled_length = sizeof(dialled);

    if (getsockopt(fd, SOL_NODESENTRY, NODESENTRY_PEER_ID, id, &id_length)) {
        snprintf(line, sizeof(line), "refused: %s\n", strerrorname_np(errno));
    } else if (getsockopt(fd, SOL_NODESENTRY, NODESENTRY_PEER, &peer, &length)) {
        snprintf(line, sizeof(line), "refused: %s\n", strerrorname_np(errno));
    } else {
        if (getsockopt(fd, SOL_IP, SO_ORIGINAL_DST, &dialled, &dialled_length) == 0)
            inet_ntop(AF_INET, &dialled.sin_addr, to, sizeof(to));
        snprintf(line, sizeof(line), "%.*s pod=%s/%s generation=%u to=%s:%d\n", (int)id_length, id, peer.pod_namespace,
                 peer.pod_name, peer.generation, to, ntohs(dialled.sin_port));
    }
    fputs(line, stdout);
    fflush(stdout);
    if (write(fd, line, strlen(line)) < 0)
        perror("write");
}

int main(int count, char **words) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

    if (count != 3 || inet_pton(AF_INET, words[1], &at.sin_addr) != 1) {
        fprintf(stderr, "usage: who ADDRESS PORT\n");
        return 2;
    }
    at.sin_port = htons(atoi(words[2]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(listener, (struct sockaddr *)&at, sizeof(at)) || listen(listener, 128)) {
        perror("listen");
        return 1;
    }
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        answer(fd);
        close(fd);
    }
}
