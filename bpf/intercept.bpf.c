// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* pod_egress: tc ingress of a pod's host-side interface, which is everything that the pod sends. What its mark relies
 * on further along stands in docs/datapath.md, "Who relies on whom". */
#define DIRECTION DIRECTION_EGRESS
#include "canary.h"
#include "datagram.h"
#include "endings.h"
#include "observe.h"
#include "other.h"
#include "records.h"
#include "sockets.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static __always_inline bool is_unspecified_or_link_local(const struct packet *packet) {
    const __u8 *bytes = packet->key.src.bytes;

    if (packet->family == AF_INET6 && bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80)
        return true;
    for (int i = 0; i < 16; i++) {
        /* 0.0.0.0 in its mapped form, and :: */
        if (bytes[i] && !(packet->family == AF_INET && (i == 10 || i == 11)))
            return false;
    }
    return true;
}

/* Identity rests on this: what an interface sends must bear an address of its pod. DHCP, duplicate address
 * detection and neighbour discovery come from addresses that nobody is known by; TCP never does. */
static __always_inline bool source_belongs(__u32 ifindex, const struct packet *packet) {
    struct source_key key = {.ifindex = ifindex, .address = packet->key.src};

    if (bpf_map_lookup_elem(&sources, &key))
        return true;
    return packet->key.protocol != IPPROTO_TCP && is_unspecified_or_link_local(packet);
}

/* What goes on by way of a queue must not have a socket: one that belongs to no sender is not expected there. */
static __always_inline bool is_left_to_lookup(const struct endpoint *endpoint) {
    return (endpoint->flags & (ENDPOINT_SHAPED | ENDPOINT_BRIDGED)) == ENDPOINT_SHAPED;
}

/* Hands the packet to `sk`, whose reference it takes. Behind a bridge port an assignment would be lost (the
 * bridge takes the packet and br_netfilter routes it), so it goes to the bridge's own ingress, where `steer`
 * looks the socket up again. */
static __always_inline int deliver(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint,
                                   struct bpf_sock *sk, enum verdict verdict) {
    if (endpoint->flags & ENDPOINT_BRIDGED) {
        bpf_sk_release(sk);
        set_mark(skb);
        count(endpoint->id, verdict);
        return bpf_redirect(endpoint->bridge_ifindex, BPF_F_INGRESS);
    }
    /* An established one the stack finds by itself, and with it the route that it has at hand (ip_early_demux). */
    if (is_left_to_lookup(endpoint) || sk->state == BPF_TCP_ESTABLISHED) {
        bpf_sk_release(sk);
        leave_to_lookup(skb);
        return pass(endpoint, verdict);
    }
    if (!give(skb, sk))
        return drop(endpoint, VERDICT_ASSIGN_FAILED);
    count(endpoint->id, verdict);
    return TC_ACT_OK;
}

/* A connection of the node's own with the pod (a probe, a proxy's plain upstream leg) also has a socket here.
 * It needs no help, and marking it would hide half of it from conntrack. */
static __always_inline bool is_local_destination(struct __sk_buff *skb, const struct packet *packet) {
    struct bpf_fib_lookup fib = {.family = packet->family, .ifindex = packet->ifindex, .l4_protocol = IPPROTO_TCP};

    if (packet->family == AF_INET) {
        __builtin_memcpy(&fib.ipv4_src, &packet->key.src.bytes[12], 4);
        __builtin_memcpy(&fib.ipv4_dst, &packet->key.dst.bytes[12], 4);
    } else {
        __builtin_memcpy(fib.ipv6_src, &packet->key.src, 16);
        __builtin_memcpy(fib.ipv6_dst, &packet->key.dst, 16);
    }
    return bpf_fib_lookup(skb, &fib, sizeof(fib), 0) == BPF_FIB_LKUP_RET_NOT_FWDED;
}

/* 127.0.0.0/8 and ::1. With route_localnet, which kube-proxy sets, the stack would take such a packet in, and the proxy
 * would dial its own node. */
static __always_inline bool is_loopback(const struct packet *packet) {
    const __u8 *bytes = packet->key.dst.bytes;

    if (packet->family == AF_INET)
        return bytes[12] == 127;
    for (int i = 0; i < 15; i++) {
        if (bytes[i])
            return false;
    }
    return bytes[15] == 1;
}

/* Whether the pod dials its node's proxy by itself, and in `instance` whose. */
static __always_inline bool is_explicit(struct __sk_buff *skb, const struct packet *packet, __u32 *instance) {
    __u16 port = packet->key.dport;
    __u32 *number = bpf_map_lookup_elem(&explicit_ports, &port);

    if (!number || !is_local_destination(skb, packet))
        return false;
    *instance = *number;
    return true;
}

/* Recorded, so that its proxy can ask who it is; delivered by the stack, like anybody's. */
static __always_inline int start_explicit(struct __sk_buff *skb, const struct packet *packet,
                                          const struct endpoint *endpoint, __u32 instance) {
    record_as(skb, packet, endpoint, instance, DIRECTION_EXPLICIT, VERDICT_EXPLICIT);
    return pass(endpoint, VERDICT_EXPLICIT);
}

/* A proxy's own port on this node, or the port at which the agent answers hooks, of another pod. */
static __always_inline bool is_closed_port(struct __sk_buff *skb, const struct packet *packet) {
    __u16 port = packet->key.dport;
    __u32 own;

    return (bpf_map_lookup_elem(&proxy_ports, &port) && is_local_destination(skb, packet)) ||
           (is_lifecycle(port, &own) && bpf_map_lookup_elem(&inbound, &packet->key.dst));
}

static __always_inline int start(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint) {
    __u16 port = packet->key.dport;
    __u32 instance = endpoint->instance;
    enum verdict verdict = VERDICT_FLOW_STARTED;
    struct bpf_sock *listener;
    int action;

    if (is_loopback(packet))
        return drop(endpoint, VERDICT_LOOPBACK);
    if (is_explicit(skb, packet, &instance))
        return start_explicit(skb, packet, endpoint, instance);
    if (is_lifecycle(port, &instance) && is_local_destination(skb, packet)) {
        verdict = VERDICT_LIFECYCLE;
        listener = listener_socket(instance, DIRECTION, packet->family);
    } else {
        if (is_closed_port(skb, packet)) {
            report(packet, endpoint, endpoint->instance, packet->ifindex, VERDICT_PROXY_PORT);
            return reset(skb, packet, endpoint, VERDICT_PROXY_PORT);
        }
        if (!is_selected(packet, endpoint, &instance))
            return exclude(packet, endpoint, true);
        listener = serving_socket(&instance, DIRECTION, packet->family);
    }
    if (!listener)
        return no_listener(skb, packet, endpoint, instance);
    action = deliver(skb, packet, endpoint, listener, verdict);
    if (action != TC_ACT_SHOT)
        record(skb, packet, endpoint, instance);
    return action;
}

/* No socket, not a SYN. Of a flow that we started it is the last step of a SYN-cookie handshake, or its proxy is
 * gone: the listener tells the two apart and resets the latter. Of any other it is older than the enrolment. */
static __always_inline int without_socket(struct __sk_buff *skb, const struct packet *packet,
                                          const struct endpoint *endpoint) {
    const struct flow *flow = known_flow(packet, endpoint);
    struct bpf_sock *listener;
    __u32 instance;

    if (!flow) {
        if (!is_selected(packet, endpoint, &instance))
            return exclude(packet, endpoint, false);
        if (!(endpoint->flags & ENDPOINT_SINCE_BIRTH))
            return pass(endpoint, VERDICT_OLDER_CONNECTION);
        skb->priority = PRIORITY_LEFT_TO_CONNTRACK;
        return pass(endpoint, VERDICT_LEFT_TO_CONNTRACK);
    }
    if (flow->direction == DIRECTION_EXPLICIT)
        return pass(endpoint, VERDICT_EXPLICIT);
    listener = listener_socket(flow->instance, DIRECTION, packet->family);
    if (!listener)
        return reset(skb, packet, endpoint, VERDICT_NO_LISTENER_RESET);
    return deliver(skb, packet, endpoint, listener, VERDICT_SYN_COOKIE);
}

/* The agent's own packet, sent from the pod's end of the interface: it has come as far as any of the pod's would.
 * Only the nonce that is waited for is answered; a pod that sends such packets itself gains nothing. */
static __always_inline bool answer_canary(struct __sk_buff *skb, const struct packet *packet,
                                          const struct endpoint *endpoint) {
    struct canary_key key = {.ifindex = packet->ifindex, .family = packet->family};
    struct canary *canary = bpf_map_lookup_elem(&canaries, &key);
    struct delivery_trial trial = {};
    __be32 sequence;

    if (!canary || bpf_skb_load_bytes(skb, packet->l4 + offsetof(struct tcphdr, seq), &sequence, sizeof(sequence)))
        return false;
    if (bpf_ntohl(sequence) != canary->nonce)
        return false;
    trial.nonce = canary->nonce;
    try_delivery(skb, packet, endpoint, packet->ifindex, !is_left_to_lookup(endpoint), &trial);
    bpf_map_update_elem(&deliveries, &key, &trial, BPF_ANY);
    canary->listening = trial.outcome != DELIVERY_NO_LISTENER;
    canary->endpoint = endpoint->id;
    canary->generation = endpoint->generation;
    canary->instance = endpoint->instance;
    canary->answered = canary->nonce;
    return true;
}

static __always_inline int not_tcp(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint,
                                   int parsed) {
    if ((endpoint->flags & ENDPOINT_DROP_OTHER) && !may_pass_closed(skb, packet, parsed))
        return drop(endpoint, VERDICT_OTHER_DROPPED);
    return pass(endpoint, parsed);
}

/* To a port that is named, or of a flow that was. */
static __always_inline int start_datagram(struct __sk_buff *skb, const struct packet *packet,
                                          const struct endpoint *endpoint) {
    struct source_key key = {.ifindex = packet->ifindex, .address = packet->key.src};
    __u16 port = packet->key.dport;
    struct bpf_sock *listener;
    __u32 instance;

    if (!is_datagram_selected(packet, endpoint, &instance)) {
        if (bpf_map_lookup_elem(&udp_proxy_ports, &port) && is_local_destination(skb, packet))
            return refuse(skb, packet, endpoint, endpoint->instance, VERDICT_PROXY_PORT);
        return not_tcp(skb, packet, endpoint, VERDICT_NOT_TCP);
    }
    /* Let through above for what comes before a pod has an address. */
    if (!bpf_map_lookup_elem(&sources, &key))
        return drop(endpoint, VERDICT_SPOOFED_SOURCE);
    if (is_loopback(packet))
        return drop(endpoint, VERDICT_LOOPBACK);
    listener = serving_udp_socket(instance, DIRECTION, packet->family);
    if (!listener && endpoint->flags & ENDPOINT_FAILURE_OPEN) {
        bpf_map_delete_elem(&flows, &packet->key);
        return not_tcp(skb, packet, endpoint, VERDICT_NO_LISTENER_OPEN);
    }
    if (!listener)
        return refuse(skb, packet, endpoint, instance, VERDICT_NO_LISTENER_RESET);
    /* Before it is on its way: at a bridge its listener is found by the record. */
    record(skb, packet, endpoint, instance);
    return deliver(skb, packet, endpoint, listener, VERDICT_FLOW_STARTED);
}

static __always_inline int datagram(struct __sk_buff *skb, struct packet *packet, const struct endpoint *endpoint) {
    struct bpf_sock *listener;
    struct flow *flow;

    if (!parse_udp(skb, packet))
        return drop(endpoint, unseen(packet));
    flow = live_flow(packet, endpoint);
    listener = flow ? udp_listener_socket(flow->instance, DIRECTION, packet->family) : NULL;
    if (!listener)
        return start_datagram(skb, packet, endpoint);
    touch(flow);
    return deliver(skb, packet, endpoint, listener, VERDICT_FLOW_PACKET);
}

/* What is said on a flow that the proxy has goes on to it; NULL for all else. */
static __always_inline struct bpf_sock *known_datagram(struct __sk_buff *skb, struct packet *packet,
                                                       const struct endpoint *endpoint, int parsed) {
    struct bpf_sock *listener;
    struct flow *flow;

    if (!(endpoint->flags & ENDPOINT_UDP_OUTBOUND) || !is_udp(packet, parsed) || !parse_udp(skb, packet) ||
        !source_belongs(packet->ifindex, packet))
        return NULL;
    flow = live_flow(packet, endpoint);
    listener = flow ? udp_listener_socket(flow->instance, DIRECTION, packet->family) : NULL;
    if (listener)
        touch(flow);
    return listener;
}

/* Of a pod that has been taken out: what belongs to a connection at the proxy goes on to it. A SYN on such a tuple
 * meets the connection's TIME_WAIT, past which the stack would not forward it. */
static __always_inline int leave(struct __sk_buff *skb, const struct endpoint *endpoint, __u32 ifindex) {
    struct packet packet = {.ifindex = ifindex};
    const struct flow *flow;
    struct bpf_sock *sk;
    int parsed = parse(skb, &packet);

    sk = known_datagram(skb, &packet, endpoint, parsed);
    if (sk)
        return deliver(skb, &packet, endpoint, sk, VERDICT_FLOW_PACKET);
    if (parsed != PARSED_TCP || !source_belongs(ifindex, &packet))
        return pass(endpoint, VERDICT_LEAVING);
    sk = connection_socket(skb, &packet.key, packet.family);
    if (!sk)
        return pass(endpoint, VERDICT_LEAVING);
    flow = known_at(skb, sk, &packet, endpoint);
    if ((flow && flow->direction == DIRECTION_EXPLICIT) || (!flow && is_local_destination(skb, &packet))) {
        bpf_sk_release(sk);
        return pass(endpoint, VERDICT_LEAVING);
    }
    return deliver(skb, &packet, endpoint, sk, VERDICT_FLOW_PACKET);
}

/* What it has open at the proxy, from before it was observed, goes on there. */
static __always_inline int observe(struct __sk_buff *skb, const struct endpoint *endpoint, __u32 ifindex) {
    struct packet packet = {.ifindex = ifindex};
    const struct flow *flow;
    struct bpf_sock *sk;
    __u32 own;
    __u16 port;
    bool starts;
    int parsed = parse(skb, &packet);

    sk = known_datagram(skb, &packet, endpoint, parsed);
    if (sk)
        return deliver(skb, &packet, endpoint, sk, VERDICT_FLOW_PACKET);
    if (parsed != PARSED_TCP)
        return packet.key.dport ? observe_datagram(&packet, endpoint) : pass(endpoint, VERDICT_OBSERVED);
    starts = (packet.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
    if (starts && packet.key.dport == 0 && answer_canary(skb, &packet, endpoint))
        return TC_ACT_SHOT;
    if (!source_belongs(ifindex, &packet))
        return observe_first(&packet, endpoint, endpoint->instance, VERDICT_WOULD_REFUSE);
    sk = connection_socket(skb, &packet.key, packet.family);
    if (sk) {
        flow = known_at(skb, sk, &packet, endpoint);
        if (!(flow && flow->direction == DIRECTION_EXPLICIT) && (flow || !is_local_destination(skb, &packet)))
            return deliver(skb, &packet, endpoint, sk, VERDICT_FLOW_PACKET);
        bpf_sk_release(sk);
        return pass(endpoint, VERDICT_OBSERVED);
    }
    if (!starts)
        return observe_later(&packet, endpoint);
    port = packet.key.dport;
    /* The agent itself answers its hooks all the same, and who dials the proxy by itself is recorded. */
    if ((is_lifecycle(port, &own) || bpf_map_lookup_elem(&explicit_ports, &port)) && is_local_destination(skb, &packet))
        return start(skb, &packet, endpoint);
    if (is_loopback(&packet) || is_closed_port(skb, &packet))
        return observe_first(&packet, endpoint, endpoint->instance, VERDICT_WOULD_REFUSE);
    return observe_start(&packet, endpoint);
}

SEC("tc")
int pod_egress(struct __sk_buff *skb) {
    const struct endpoint nobody = {};
    struct packet packet = {.ifindex = skb->ifindex};
    struct endpoint *endpoint;
    const struct flow *flow;
    struct bpf_sock *sk;
    __u32 ifindex = packet.ifindex, instance;
    bool starts, again;
    int parsed;

    endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);
    if (!endpoint)
        return pass(&nobody, VERDICT_NO_ENDPOINT);
    if (endpoint->flags & ENDPOINT_LEAVING)
        return leave(skb, endpoint, ifindex);
    if (endpoint->flags & ENDPOINT_OBSERVED)
        return observe(skb, endpoint, ifindex);

    parsed = parse(skb, &packet);
    if (parsed == VERDICT_NOT_IP)
        return not_tcp(skb, &packet, endpoint, parsed);
    if (parsed != VERDICT_MALFORMED && parsed != VERDICT_EXTENSION_HEADERS && !source_belongs(ifindex, &packet))
        return drop(endpoint, VERDICT_SPOOFED_SOURCE);
    if (endpoint->flags & ENDPOINT_UDP_OUTBOUND && is_udp(&packet, parsed))
        return datagram(skb, &packet, endpoint);
    if (parsed == VERDICT_NOT_TCP)
        return not_tcp(skb, &packet, endpoint, parsed);
    if (parsed != PARSED_TCP)
        return drop(endpoint, parsed);

    starts = (packet.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
    if (starts && packet.key.dport == 0 && answer_canary(skb, &packet, endpoint))
        return TC_ACT_SHOT;
    sk = connection_socket(skb, &packet.key, packet.family);
    if (!sk)
        return starts ? start(skb, &packet, endpoint) : without_socket(skb, &packet, endpoint);
    flow = known_at(skb, sk, &packet, endpoint);
    if (flow && flow->direction == DIRECTION_EXPLICIT) {
        bpf_sk_release(sk);
        return starts ? start(skb, &packet, endpoint) : pass(endpoint, VERDICT_EXPLICIT);
    }
    if (!flow && is_local_destination(skb, &packet)) {
        bpf_sk_release(sk);
        return starts ? start(skb, &packet, endpoint) : pass(endpoint, VERDICT_OLDER_CONNECTION);
    }
    /* A SYN for a socket in TIME_WAIT is a new connection on an old tuple. */
    again = starts && sk->state == BPF_TCP_TIME_WAIT;
    instance = endpoint->instance;
    if (again) {
        /* Intercepted even where it is not selected by now: the stack lets no such packet past the old socket. */
        is_selected(&packet, endpoint, &instance);
        if (!has_listener(&instance, packet.family)) {
            bpf_sk_release(sk);
            return no_listener(skb, &packet, endpoint, instance);
        }
    }
    parsed = deliver(skb, &packet, endpoint, sk, again ? VERDICT_FLOW_STARTED : VERDICT_FLOW_PACKET);
    if (again && parsed != TC_ACT_SHOT)
        record(skb, &packet, endpoint, instance);
    return parsed;
}
