/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Who is at the ends of an intercepted connection, asked by a proxy on the socket that it has accepted:
 *
 *     char id[NODESENTRY_SPIFFE_MAX];
 *     socklen_t length = sizeof(id);
 *     if (getsockopt(fd, SOL_NODESENTRY, NODESENTRY_PEER_ID, id, &length) == 0)
 *         printf("%.*s\n", (int)length, id);
 *
 * Answered in the kernel from what the datapath has recorded, so also while the agent is down. The text has no NUL at
 * its end that `length` would count. See docs/identity.md and nodesentry(7).
 *
 * Errors (Linux 5.18 and later; before that EPERM stands for all but the first):
 *     ENOPROTOOPT, EOPNOTSUPP   this process is in no cgroup of an adopted proxy, or NodeSentry is not there
 *     ENOENT        not a connection that NodeSentry has intercepted
 *     ENOKEY        the pod is known, its identity is not confirmed (yet), or it has none
 *     ENXIO         the other end is no pod of this node that is enrolled
 *     EKEYREJECTED  the other end is known by its address alone, which others can forge
 *     ERANGE        the buffer is too short
 */
#ifndef NODESENTRY_H
#define NODESENTRY_H

#include <linux/types.h>

/** The level of getsockopt(2). */
#define SOL_NODESENTRY 0x4e53

/** The peer's SPIFFE ID, as text: who has opened the connection. */
#define NODESENTRY_PEER_ID 1
/** The peer, as struct nodesentry_end. */
#define NODESENTRY_PEER 2
/** The same of whom the connection was opened to, where that is a pod of this node. */
#define NODESENTRY_TARGET_ID 3
#define NODESENTRY_TARGET 4

/** The longest SPIFFE ID that is ever answered, in bytes. */
#define NODESENTRY_SPIFFE_MAX 640

#define NODESENTRY_VERSION 1

/** Which way the connection goes, as seen by the pod that it was intercepted for. */
enum nodesentry_direction {
    NODESENTRY_EGRESS = 0,
    NODESENTRY_INGRESS = 1,
};

/** What the answer rests on. IP_ONLY is never answered here. */
enum nodesentry_assurance {
    NODESENTRY_IP_ONLY = 0,
    NODESENTRY_IP_AND_IFACE = 1,      /* the address is that of the pod behind the interface to which the node sends */
    NODESENTRY_DATAPATH_RECORDED = 2, /* the connection was seen at the pod's own interface */
};

enum nodesentry_runtime {
    NODESENTRY_RUNTIME_UNKNOWN = 0,
    NODESENTRY_RUNC = 1,
    NODESENTRY_RUNSC = 2,
    NODESENTRY_RUND = 3,
};

/** Texts end with a NUL and are empty where nothing is known. A later version only adds fields, and a larger size. */
struct nodesentry_end {
    __u16 version; /* NODESENTRY_VERSION */
    __u16 size;    /* of what was written, in bytes */
    __u8 direction;
    __u8 assurance;
    __u8 runtime;
    __u8 reserved;
    __u32 generation; /* grows each time the pod is enrolled anew */
    __u32 reserved2;
    char pod_uid[64];
    char pod_namespace[64];
    char pod_name[256];
    char service_account[256];
    char app[64];
    char instance[64]; /* the instance whose listener has accepted the connection */
};

#endif
