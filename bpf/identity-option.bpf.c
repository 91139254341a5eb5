// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* identity_option: cgroup/getsockopt of the cgroups that proxies listen in. Says on an accepted socket who is at its
 * ends (include/nodesentry.h), and which address was dialled, as iptables' REDIRECT has it (SO_ORIGINAL_DST). All other
 * options, and all other sockets, are left as the kernel has answered them (docs/identity.md). */
#include "sockets.h"

#include <nodesentry.h>

#define SOL_IP 0
#define SOL_IPV6 41
#define ORIGINAL_DST 80 /* SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST */

#define ENOENT 2
#define ENXIO 6
#define ERANGE 34
#define ENOKEY 126
#define EKEYREJECTED 129

#define AN_OPTION_MAY_SET_ERRNO KERNEL_VERSION(5, 18, 0)
#define OPTIONS_KNOW_NAMESPACES KERNEL_VERSION(5, 15, 0)

extern int LINUX_KERNEL_VERSION __kconfig;

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum {
    GO_ON = 1, /* as the context says */
    REFUSE = 0,
};

/* The compiler would make one store of two neighbouring ones, which the verifier refuses. */
static __always_inline int answered(struct bpf_sockopt *context, __s32 length) {
    *(volatile __s32 *)&context->optlen = length;
    *(volatile __s32 *)&context->retval = 0;
    return GO_ON;
}

static __always_inline int refused(struct bpf_sockopt *context, __s32 error) {
    if (LINUX_KERNEL_VERSION < AN_OPTION_MAY_SET_ERRNO)
        return REFUSE; /* EPERM */
    *(volatile __s32 *)&context->retval = -error;
    return GO_ON;
}

/* As `flows` has it: the peer has opened the connection. */
static __always_inline void tuple_of(const struct bpf_sock *sk, struct flow_key *key) {
    if (sk->family == AF_INET) {
        map_v4(&key->src, sk->dst_ip4);
        map_v4(&key->dst, sk->src_ip4);
    } else {
        __u32 *src = (__u32 *)key->src.bytes, *dst = (__u32 *)key->dst.bytes;

        for (int i = 0; i < 4; i++) {
            src[i] = sk->dst_ip6[i];
            dst[i] = sk->src_ip6[i];
        }
    }
    key->sport = bpf_ntohs(sk->dst_port);
    key->dport = sk->src_port;
    key->protocol = IPPROTO_TCP;
}

/* Whether the socket is of the network namespace that the agent works in: in another one the same addresses and ports
 * are somebody else's. */
static __always_inline bool is_on_node(struct bpf_sockopt *context) {
    __u32 row = 0;
    struct node *own = bpf_map_lookup_elem(&node, &row);

    if (LINUX_KERNEL_VERSION < OPTIONS_KNOW_NAMESPACES)
        return false;
    return own && own->netns_cookie && own->netns_cookie == bpf_get_netns_cookie(context);
}

/* The record at the socket, which is there from its first packet on; before that, the one of its addresses. */
static __always_inline struct flow *record_of(struct bpf_sock *sk, const struct flow_key *key, bool on_node) {
    struct connection *connection = bpf_sk_storage_get(&connections, sk, NULL, 0);
    struct endpoint *endpoint;
    struct flow *flow;

    if (connection)
        return &connection->flow;
    if (!on_node)
        return NULL;
    flow = bpf_map_lookup_elem(&flows, key);
    endpoint = flow ? bpf_map_lookup_elem(&endpoints, &flow->ifindex) : NULL;
    return flow && endpoint && started_by(flow, endpoint) ? flow : NULL;
}

static __always_inline int tell_original_destination(struct bpf_sockopt *context, const struct flow_key *key) {
    if (context->level == SOL_IP) {
        struct sockaddr_in *to = context->optval;

        if ((void *)(to + 1) > context->optval_end || !is_mapped(&key->dst))
            return GO_ON;
        __builtin_memset(to, 0, sizeof(*to));
        to->sin_family = AF_INET;
        to->sin_port = bpf_htons(key->dport);
        __builtin_memcpy(&to->sin_addr, &key->dst.bytes[12], sizeof(to->sin_addr));
        return answered(context, sizeof(*to));
    }
    struct sockaddr_in6 *to = context->optval;

    if ((void *)(to + 1) > context->optval_end || is_mapped(&key->dst))
        return GO_ON;
    __builtin_memset(to, 0, sizeof(*to));
    to->sin6_family = AF_INET6;
    to->sin6_port = bpf_htons(key->dport);
    __builtin_memcpy(&to->sin6_addr, &key->dst, sizeof(to->sin6_addr));
    return answered(context, sizeof(*to));
}

static __always_inline int tell_id(struct bpf_sockopt *context, const struct identity *identity) {
    __u8 *to = context->optval, *end = context->optval_end;
    __u32 length = identity->id_length, at = 0;

    for (; at + 8 <= NODESENTRY_SPIFFE_MAX && at + 8 <= length; at += 8) {
        if (to + 8 > end)
            return refused(context, ERANGE);
        __builtin_memcpy(to, &identity->id[at], 8);
        to += 8;
    }
    for (; at < NODESENTRY_SPIFFE_MAX && at < length; at++) {
        if (to + 1 > end)
            return refused(context, ERANGE);
        *to++ = identity->id[at];
    }
    return answered(context, length);
}

static __always_inline int tell_end(struct bpf_sockopt *context, const struct identity *identity,
                                    const struct flow *flow, enum nodesentry_assurance assurance) {
    struct nodesentry_end *to = context->optval;
    struct instance *instance = bpf_map_lookup_elem(&instances, &flow->instance);

    if ((void *)(to + 1) > context->optval_end)
        return refused(context, ERANGE);
    __builtin_memcpy(to, &identity->end, sizeof(*to));
    to->direction = flow->direction == DIRECTION_INGRESS ? NODESENTRY_INGRESS : NODESENTRY_EGRESS;
    to->assurance = assurance;
    if (assurance == NODESENTRY_DATAPATH_RECORDED)
        to->generation = flow->generation;
    if (instance)
        __builtin_memcpy(to->instance, instance->name, sizeof(to->instance));
    return answered(context, sizeof(*to));
}

static __always_inline int tell(struct bpf_sockopt *context, const struct flow_key *key, const struct flow *flow) {
    bool of_target = context->optname == NODESENTRY_TARGET_ID || context->optname == NODESENTRY_TARGET;
    bool is_recorded = of_target == (flow->direction == DIRECTION_INGRESS);
    __u32 endpoint = flow->endpoint, *at_address;
    struct identity *identity;

    if (!is_recorded) {
        at_address = bpf_map_lookup_elem(&addresses, of_target ? &key->dst : &key->src);
        if (!at_address)
            return refused(context, ENXIO);
        /* The node sends to the interface that the address is at, but who sends from it may be anybody. */
        if (!of_target)
            return refused(context, EKEYREJECTED);
        endpoint = *at_address;
    }
    identity = bpf_map_lookup_elem(&identities, &endpoint);
    if (!identity || !identity->id_length)
        return refused(context, ENOKEY);
    if (context->optname == NODESENTRY_PEER_ID || context->optname == NODESENTRY_TARGET_ID)
        return tell_id(context, identity);
    return tell_end(context, identity, flow, is_recorded ? NODESENTRY_DATAPATH_RECORDED : NODESENTRY_IP_AND_IFACE);
}

SEC("cgroup/getsockopt")
int identity_option(struct bpf_sockopt *context) {
    bool is_ours = context->level == SOL_NODESENTRY && context->optname >= NODESENTRY_PEER_ID &&
                   context->optname <= NODESENTRY_TARGET;
    bool is_destination = context->optname == ORIGINAL_DST && (context->level == SOL_IP || context->level == SOL_IPV6);
    struct bpf_sock *sk = context->sk;
    struct flow_key key = {};
    struct flow *flow;
    bool on_node;

    /* An agent of another network namespace may have answered before us. */
    if ((!is_ours && !is_destination) || !sk || (is_ours && context->retval == 0))
        return GO_ON;
    if (sk->protocol != IPPROTO_TCP)
        return GO_ON;
    tuple_of(sk, &key);
    on_node = is_on_node(context);
    flow = record_of(sk, &key, on_node);
    if (!flow)
        return is_ours && on_node ? refused(context, ENOENT) : GO_ON;
    return is_destination ? tell_original_destination(context, &key) : tell(context, &key, flow);
}
