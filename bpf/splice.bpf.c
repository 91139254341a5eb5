// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The splice: of a connection whose two sockets are both on this node, what one end sends goes into the other end's
 * queue, past the TCP stack (docs/splice.md). splice_pair finds the two ends as they are established, splice_send
 * decides for each message, splice_hold keeps the two ways in order, splice_ulp keeps kTLS away from a socket that is
 * filled so. */
#include "splice.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define SOL_TCP 6
#define TCP_ULP 31
#define SPLICE_RETRY_US 5000

static __always_inline bool is_node(__u64 netns_cookie) {
    __u32 row = 0;
    struct node *here = bpf_map_lookup_elem(&node, &row);

    return here && here->netns_cookie == netns_cookie;
}

static __always_inline bool is_enabled(void) {
    __u32 row = 0;
    struct splice_settings *settings_row = bpf_map_lookup_elem(&splice_settings, &row);

    return settings_row && settings_row->enabled;
}

static __always_inline struct splice_count *counts(void) {
    __u32 row = 0;

    return bpf_map_lookup_elem(&splice_counts, &row);
}

/* A pod that is spliced, whose interface this is; as it is enrolled now. */
static __always_inline struct endpoint *spliced_endpoint(__u32 ifindex) {
    struct endpoint *endpoint;

    if (!bpf_map_lookup_elem(&splice_interfaces, &ifindex))
        return NULL;
    endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);
    return endpoint && !(endpoint->flags & ENDPOINT_LEAVING) ? endpoint : NULL;
}

/* The pod has dialled, and its first packet was given to the listener: pod_egress has recorded it. */
static __always_inline bool is_recorded(const struct flow_key *key, __u32 ifindex) {
    struct flow *flow = bpf_map_lookup_elem(&flows, key);
    struct endpoint *endpoint = flow ? spliced_endpoint(flow->ifindex) : NULL;

    return endpoint && started_by(flow, endpoint) && flow->direction == DIRECTION_EGRESS &&
           (!ifindex || flow->ifindex == ifindex);
}

/* The node dials a pod that is intercepted inbound: its proxy's leg to it. */
static __always_inline bool is_for_pod(const struct flow_key *key, __u32 ifindex) {
    __u32 *at = bpf_map_lookup_elem(&inbound, &key->dst);

    return at && (!ifindex || *at == ifindex) && spliced_endpoint(*at);
}

/* Which leg the socket is an end of. Whether it dialled or accepted and in which namespace it is decide together, so
 * that two connections with the same addresses and ports in two namespaces never meet. */
static __always_inline bool place(const struct splice_key *end, __u64 netns_cookie, __u8 *leg) {
    __u32 *ifindex = bpf_map_lookup_elem(&splice_pods, &netns_cookie);

    if (ifindex) {
        *leg = end->accepted ? SPLICE_TO_POD : SPLICE_FROM_POD;
        return end->accepted ? is_for_pod(&end->flow, *ifindex) : is_recorded(&end->flow, *ifindex);
    }
    if (!is_node(netns_cookie))
        return false;
    *leg = end->accepted ? SPLICE_FROM_POD : SPLICE_TO_POD;
    return end->accepted ? is_recorded(&end->flow, 0) : is_for_pod(&end->flow, 0);
}

/* Read where it stands: the compiler would choose between two places in the context first, which the verifier refuses.
 */
#define READ(field)                                                                                                    \
    ({                                                                                                                 \
        __u32 value = (field);                                                                                         \
        asm volatile("" : "+r"(value));                                                                                \
        value;                                                                                                         \
    })

static __always_inline void read_key(struct bpf_sock_ops *ops, struct splice_key *key, bool accepted) {
    struct address local, remote;
    __u16 local_port = READ(ops->local_port);
    __u16 remote_port = bpf_ntohl(READ(ops->remote_port));

    if (ops->family == AF_INET) {
        map_v4(&local, READ(ops->local_ip4));
        map_v4(&remote, READ(ops->remote_ip4));
    } else {
        __u32 words[8] = {
            READ(ops->local_ip6[0]),  READ(ops->local_ip6[1]),  READ(ops->local_ip6[2]),  READ(ops->local_ip6[3]),
            READ(ops->remote_ip6[0]), READ(ops->remote_ip6[1]), READ(ops->remote_ip6[2]), READ(ops->remote_ip6[3]),
        };

        __builtin_memcpy(&local, words, sizeof(local));
        __builtin_memcpy(&remote, words + 4, sizeof(remote));
    }
    key->flow.protocol = IPPROTO_TCP;
    key->flow.src = accepted ? remote : local;
    key->flow.dst = accepted ? local : remote;
    key->flow.sport = accepted ? remote_port : local_port;
    key->flow.dport = accepted ? local_port : remote_port;
    key->accepted = accepted;
}

static __always_inline void pair(struct bpf_sock_ops *ops, bool accepted) {
    struct splice_key key = {};
    struct splice_end end = {};
    struct splice_sock at = {};
    struct splice_count *counted;
    int retry_us = SPLICE_RETRY_US;
    struct bpf_sock *sk = ops->sk;
    __u64 netns_cookie = bpf_get_netns_cookie(ops);

    if (!sk || !is_enabled())
        return;
    read_key(ops, &key, accepted);
    if (!place(&key, netns_cookie, &key.leg))
        return;
    end.own = key;
    end.other = key;
    end.other.accepted = !accepted;
    if (!bpf_sk_storage_get(&splice_ends, sk, &end, BPF_SK_STORAGE_GET_F_CREATE))
        return;
    at.at = (__u64)sk;
    /* -EBUSY: somebody else's sockmap has it already. */
    if (bpf_map_update_elem(&splice_socks, &key, &at, BPF_ANY) ||
        bpf_sock_hash_update(ops, &splice_sockets, &key, BPF_ANY)) {
        bpf_map_delete_elem(&splice_socks, &key);
        bpf_sk_storage_delete(&splice_ends, sk);
        return;
    }
    /* What splice_hold holds back has to come again soon. */
    bpf_setsockopt(ops, SOL_TCP, TCP_BPF_RTO_MIN, &retry_us, sizeof(retry_us));
    bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
    counted = counts();
    if (counted)
        counted->ends++;
}

SEC("sockops")
int splice_pair(struct bpf_sock_ops *ops) {
    struct splice_end *end;

    switch (ops->op) {
    case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
        pair(ops, false);
        break;
    case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
        pair(ops, true);
        break;
    case BPF_SOCK_OPS_STATE_CB:
        if (ops->args[1] != BPF_TCP_CLOSE || !ops->sk)
            break;
        end = bpf_sk_storage_get(&splice_ends, ops->sk, NULL, 0);
        if (end)
            bpf_map_delete_elem(&splice_socks, &end->own);
        break;
    }
    return 1;
}

/* Bytes of its queues. */
static __always_inline int waiting(const struct splice_sock *row) {
    struct sock *socket = (struct sock *)row->at;
    int bytes = 0;

    bpf_core_read(&bytes, sizeof(bytes), &socket->sk_backlog.rmem_alloc);
    return bytes;
}

/* Bytes come out of a socket in this order: what was spliced into it, then what came by TCP. So a message may be
 * spliced only when all that went by TCP before it has been read; the other way about is always in order. The other
 * socket may have gone, and its memory be another's: a wrong answer here costs the splice, never a byte, for the
 * redirect looks it up again. */
static __always_inline bool may_splice(const struct tcp_sock *own, const struct splice_sock *other) {
    struct tcp_sock *socket = (struct tcp_sock *)other->at;
    __u32 read_to = 0;

    if (bpf_core_read(&read_to, sizeof(read_to), &socket->copied_seq))
        return false;
    return own->write_seq == read_to;
}

SEC("sk_msg")
int splice_send(struct sk_msg_md *message) {
    struct splice_count *counted = counts();
    struct tcp_sock *own;
    struct splice_end *end;
    struct splice_sock *other;

    if (!counted || !message->sk || !is_enabled())
        return SK_PASS;
    end = bpf_sk_storage_get(&splice_ends, message->sk, NULL, 0);
    own = bpf_skc_to_tcp_sock(message->sk);
    if (!end || !own)
        return SK_PASS;
    other = bpf_map_lookup_elem(&splice_socks, &end->other);
    if (other && waiting(other) >= SPLICE_MAX_WAITING)
        end->left_to_tcp = 1;
    if (other && !end->left_to_tcp && may_splice(own, other)) {
        __u32 size = message->size;

        if (bpf_msg_redirect_hash(message, &splice_sockets, &end->other, BPF_F_INGRESS) == SK_PASS) {
            counted->messages++;
            counted->bytes += size;
            return SK_PASS;
        }
    }
    counted->left_to_tcp++;
    return SK_PASS; /* without a socket named: by TCP */
}

/* What has been spliced into the socket and nobody has read. */
static __always_inline bool has_spliced(struct tcp_sock *own) {
    struct list_head *first = NULL;
    void *data = NULL;
    struct sk_psock *psock;

    if (bpf_core_read(&data, sizeof(data), &((struct sock *)own)->sk_user_data))
        return false;
    psock = (struct sk_psock *)((__u64)data & ~7ULL); /* the lowest bits say whose it is */
    if (!psock || bpf_core_read(&first, sizeof(first), &psock->ingress_msg.next))
        return false;
    return first != &psock->ingress_msg;
}

/* Bytes, or the end of the stream after some that have not been read. An IPv6 packet of a local socket has no extension
 * headers but for those that a program asks for: nothing is known of it then, and it passes. */
static __always_inline bool read_segment(const struct __sk_buff *skb, struct tcp_sock *own, bool *in_the_way) {
    __u8 ip[20];
    struct tcphdr tcp;
    __u32 end, read_to = 0, at = skb->family == AF_INET6 ? 40 : 20;

    if (bpf_skb_load_bytes(skb, 0, ip, 20))
        return false;
    if (skb->family == AF_INET)
        at = (ip[0] & 15) * 4;
    else if (ip[6] != IPPROTO_TCP)
        return false;
    if (bpf_skb_load_bytes(skb, at, &tcp, sizeof(tcp)))
        return false;
    end = at + tcp.doff * 4;
    if (bpf_core_read(&read_to, sizeof(read_to), &own->copied_seq))
        return false;
    *in_the_way = skb->len > end || (tcp.fin && bpf_ntohl(tcp.seq) != read_to);
    return true;
}

/* A reader takes a read(2) that returns less than it has asked for as a sign that nothing more waits, and with
 * EPOLLRDHUP that nothing more comes: HAProxy, nginx, tokio. At the border between what was spliced and what came by
 * TCP that would be wrong. So nothing comes by TCP before all that was spliced has been read: the sender tries again.
 */
SEC("cgroup_skb/ingress")
int splice_hold(struct __sk_buff *skb) {
    struct bpf_sock *sk = skb->sk;
    struct splice_count *counted;
    struct tcp_sock *own;
    bool in_the_way;

    sk = sk ? bpf_sk_fullsock(sk) : NULL;
    if (!sk || !bpf_sk_storage_get(&splice_ends, sk, NULL, 0))
        return 1;
    own = bpf_skc_to_tcp_sock(sk);
    if (!own || !has_spliced(own) || !read_segment(skb, own, &in_the_way) || !in_the_way)
        return 1;
    counted = counts();
    if (counted)
        counted->held_back++;
    return 0;
}

/* kTLS on a socket whose queue the splice fills would hand out what it has not decrypted. Who asks for it is told that
 * there is none, and encrypts itself, as on a kernel that was built without it. */
SEC("cgroup/setsockopt")
int splice_ulp(struct bpf_sockopt *option) {
    if (option->level != SOL_TCP || option->optname != TCP_ULP || !option->sk)
        return 1;
    if (!bpf_sk_storage_get(&splice_ends, option->sk, NULL, 0))
        return 1;
    bpf_set_retval(-ENOENT);
    return 0;
}

struct bpf_map;

static long look(struct bpf_map *map, const struct splice_key *key, struct splice_sock *row, void *context) {
    (void)map, (void)key, (void)context;
    row->waiting = has_spliced((struct tcp_sock *)row->at);
    return 0;
}

/* Run by hand, before the map goes in which these sockets are: a socket that has bytes waiting would lose them. */
SEC("tc")
int splice_look(struct __sk_buff *skb) {
    (void)skb;
    bpf_for_each_map_elem(&splice_socks, look, NULL, 0);
    return 0;
}
