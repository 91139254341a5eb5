// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* pod_ingress: tc egress of a pod's host-side interface, which is everything that the pod is sent and the last point
 * before it, whatever its runtime. A socket cannot be assigned here, so what is for the proxy goes to the agent's own
 * interface, where inbound_steer does it (docs/ingress.md). */
#define DIRECTION DIRECTION_INGRESS
#include "datagram.h"
#include "observe.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static __always_inline bool destination_belongs(__u32 ifindex, const struct packet *packet) {
    struct source_key key = {.ifindex = ifindex, .address = packet->key.dst};

    return bpf_map_lookup_elem(&sources, &key);
}

/* A probe, a connection of the node's, a proxy's leg to the pod. What has been received by an interface of the node
 * bears that one's number; a SYN that netfilter makes on behalf of others (SYNPROXY) has no socket. */
static __always_inline bool is_from_node(const struct __sk_buff *skb) {
    return !skb->ingress_ifindex && skb->sk;
}

/* What another instance's proxy of this node sends to the pod, be it on behalf of a pod of its own, is for the pod's
 * proxy to judge; of the pod's own proxy for that port it is the leg that the pod is to have. */
static __always_inline bool is_from_another_proxy(struct __sk_buff *skb, const struct packet *packet,
                                                  const struct endpoint *endpoint, int parsed) {
    __u64 cgroup = bpf_skb_cgroup_id(skb);
    __u32 *instance = bpf_map_lookup_elem(&proxy_cgroups, &cgroup);
    __u32 own;

    if (!instance || *instance == endpoint->instance)
        return false;
    if (is_udp(packet, parsed))
        is_datagram_selected(packet, endpoint, &own);
    else
        is_selected(packet, endpoint, &own);
    return *instance != own;
}

static __always_inline int send_to_proxy(struct __sk_buff *skb, const struct endpoint *endpoint, enum verdict verdict) {
    __u32 row = 0;
    struct steering *own = bpf_map_lookup_elem(&steering, &row);

    if (!own || !own->ifindex)
        return drop(endpoint, VERDICT_STEER_LOST);
    set_mark(skb);
    count(endpoint->id, verdict);
    return bpf_redirect(own->ifindex, BPF_F_INGRESS);
}

static __always_inline int start(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint) {
    __u32 instance, own;
    int action;

    /* Only the node asks in a pod's name: what the proxy passed on of it would come from the node. */
    if (is_lifecycle(packet->key.dport, &own)) {
        report(packet, endpoint, endpoint->instance, packet->ifindex, VERDICT_PROXY_PORT);
        return reset(skb, packet, endpoint, VERDICT_PROXY_PORT);
    }
    if (!is_selected(packet, endpoint, &instance))
        return exclude(packet, endpoint, true);
    if (endpoint->flags & ENDPOINT_CLOSING) {
        report(packet, endpoint, instance, packet->ifindex, VERDICT_CLOSING);
        return reset(skb, packet, endpoint, VERDICT_CLOSING);
    }
    if (!has_listener(&instance, packet->family))
        return no_listener(skb, packet, endpoint, instance);
    action = send_to_proxy(skb, endpoint, VERDICT_FLOW_STARTED);
    if (action != TC_ACT_SHOT)
        record(skb, packet, endpoint, instance);
    return action;
}

/* What the kubelet asks of a pod at the port that the agent answers: to the agent, whatever the pod has there. */
static __always_inline int from_node(struct __sk_buff *skb, const struct packet *packet,
                                     const struct endpoint *endpoint, int parsed) {
    __u32 instance = 0;
    struct bpf_sock *listener;
    int action;

    if (parsed != PARSED_TCP || !is_lifecycle(packet->key.dport, &instance) ||
        !destination_belongs(packet->ifindex, packet))
        return pass(endpoint, VERDICT_FROM_NODE);
    listener = listener_socket(instance, DIRECTION, packet->family);
    if (!listener)
        return pass(endpoint, VERDICT_FROM_NODE);
    bpf_sk_release(listener);
    action = send_to_proxy(skb, endpoint, VERDICT_LIFECYCLE);
    if (action != TC_ACT_SHOT && (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
        record(skb, packet, endpoint, instance);
    return action;
}

/* As in pod_egress: of a flow of ours it ends a SYN-cookie handshake, or its proxy is gone; any other is older than the
 * enrolment, or an answer to what the pod itself has dialled. */
static __always_inline int without_socket(struct __sk_buff *skb, const struct packet *packet,
                                          const struct endpoint *endpoint) {
    const struct flow *flow = known_flow(packet, endpoint);
    struct bpf_sock *listener;

    if (!flow)
        return pass(endpoint, VERDICT_OLDER_CONNECTION);
    listener = listener_socket(flow->instance, DIRECTION, packet->family);
    if (!listener)
        return reset(skb, packet, endpoint, VERDICT_NO_LISTENER_RESET);
    bpf_sk_release(listener);
    return send_to_proxy(skb, endpoint, VERDICT_SYN_COOKIE);
}

/* Writes down where the agent's own packet has come out; inbound_steer ends it. */
static __always_inline bool answers_canary(struct __sk_buff *skb, const struct packet *packet,
                                           const struct endpoint *endpoint) {
    struct canary_key key = {.ifindex = packet->ifindex, .family = packet->family};
    struct canary *canary = bpf_map_lookup_elem(&ingress_canaries, &key);
    __be32 sequence;

    if (!canary || bpf_skb_load_bytes(skb, packet->l4 + offsetof(struct tcphdr, seq), &sequence, sizeof(sequence)))
        return false;
    if (bpf_ntohl(sequence) != canary->nonce)
        return false;
    canary->endpoint = endpoint->id;
    canary->generation = endpoint->generation;
    canary->instance = endpoint->instance;
    return true;
}

static __always_inline int start_datagram(struct __sk_buff *skb, const struct packet *packet,
                                          const struct endpoint *endpoint) {
    struct bpf_sock *listener;
    __u32 instance;

    if (!is_datagram_selected(packet, endpoint, &instance))
        return pass(endpoint, VERDICT_NOT_TCP);
    if (endpoint->flags & ENDPOINT_CLOSING)
        return refuse(skb, packet, endpoint, instance, VERDICT_CLOSING);
    listener = serving_udp_socket(instance, DIRECTION, packet->family);
    if (!listener && endpoint->flags & ENDPOINT_FAILURE_OPEN) {
        bpf_map_delete_elem(&flows, &packet->key);
        report(packet, endpoint, instance, packet->ifindex, VERDICT_NO_LISTENER_OPEN);
        return pass(endpoint, VERDICT_NO_LISTENER_OPEN);
    }
    if (!listener)
        return refuse(skb, packet, endpoint, instance, VERDICT_NO_LISTENER_RESET);
    bpf_sk_release(listener);
    record(skb, packet, endpoint, instance);
    return send_to_proxy(skb, endpoint, VERDICT_FLOW_STARTED);
}

/* Whether the datagram is of a flow that the proxy has. */
static __always_inline bool is_known_datagram(const struct packet *packet, const struct endpoint *endpoint) {
    struct flow *flow = live_flow(packet, endpoint);
    struct bpf_sock *listener = flow ? udp_listener_socket(flow->instance, DIRECTION, packet->family) : NULL;

    if (!listener)
        return false;
    bpf_sk_release(listener);
    touch(flow);
    return true;
}

static __always_inline int datagram(struct __sk_buff *skb, const struct packet *packet,
                                    const struct endpoint *endpoint) {
    if (!destination_belongs(packet->ifindex, packet))
        return pass(endpoint, VERDICT_NOT_OURS);
    if (packet->key.dport && is_known_datagram(packet, endpoint))
        return send_to_proxy(skb, endpoint, VERDICT_FLOW_PACKET);
    if (endpoint->flags & ENDPOINT_LEAVING)
        return pass(endpoint, VERDICT_LEAVING);
    if (endpoint->flags & ENDPOINT_OBSERVED)
        return packet->key.dport ? observe_datagram(packet, endpoint) : pass(endpoint, VERDICT_OBSERVED);
    if (!packet->key.dport)
        return drop(endpoint, unseen(packet));
    return start_datagram(skb, packet, endpoint);
}

/* Only of what bears the pod's address: a bridge floods a frame for a station that it does not know to every port. */
static __always_inline int not_tcp(const struct packet *packet, const struct endpoint *endpoint, __u32 ifindex,
                                   int parsed) {
    if (parsed == VERDICT_NOT_TCP || parsed == VERDICT_NOT_IP)
        return pass(endpoint, parsed);
    /* Behind too many tags nobody has looked for an address. */
    if ((parsed == VERDICT_FRAGMENT || parsed == VERDICT_VLAN) && packet->family &&
        !destination_belongs(ifindex, packet))
        return pass(endpoint, VERDICT_NOT_OURS);
    return drop(endpoint, parsed);
}

/* As in pod_egress. */
static __always_inline int leave(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint,
                                 int parsed) {
    struct bpf_sock *sk;

    if (parsed != PARSED_TCP || !destination_belongs(packet->ifindex, packet))
        return pass(endpoint, VERDICT_LEAVING);
    sk = connection_socket(skb, &packet->key, packet->family);
    if (!sk)
        return pass(endpoint, VERDICT_LEAVING);
    bpf_sk_release(sk);
    return send_to_proxy(skb, endpoint, VERDICT_FLOW_PACKET);
}

/* As in pod_egress. */
static __always_inline int observe(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint,
                                   int parsed) {
    struct bpf_sock *sk;
    bool starts;

    if (parsed != PARSED_TCP)
        return pass(endpoint, VERDICT_OBSERVED);
    starts = (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
    if (starts && packet->key.dport == 0 && answers_canary(skb, packet, endpoint))
        return send_to_proxy(skb, endpoint, VERDICT_CANARY);
    if (!destination_belongs(packet->ifindex, packet))
        return pass(endpoint, VERDICT_NOT_OURS);
    sk = connection_socket(skb, &packet->key, packet->family);
    if (sk) {
        bpf_sk_release(sk);
        return send_to_proxy(skb, endpoint, VERDICT_FLOW_PACKET);
    }
    return starts ? observe_start(packet, endpoint) : observe_later(packet, endpoint);
}

SEC("tc")
int pod_ingress(struct __sk_buff *skb) {
    struct packet packet = {.ifindex = skb->ifindex};
    struct endpoint *endpoint;
    struct bpf_sock *sk;
    __u32 ifindex = packet.ifindex;
    bool starts, again, udp;
    int parsed;

    endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);
    if (!endpoint || !(endpoint->flags & ENDPOINT_INBOUND))
        return TC_ACT_UNSPEC;
    parsed = parse(skb, &packet);
    udp = endpoint->flags & ENDPOINT_UDP_INBOUND && is_udp(&packet, parsed);
    if (udp)
        parse_udp(skb, &packet);
    if (is_from_node(skb) && !is_from_another_proxy(skb, &packet, endpoint, parsed))
        return from_node(skb, &packet, endpoint, parsed);
    if (udp)
        return datagram(skb, &packet, endpoint);
    if (endpoint->flags & ENDPOINT_LEAVING)
        return leave(skb, &packet, endpoint, parsed);
    if (endpoint->flags & ENDPOINT_OBSERVED)
        return observe(skb, &packet, endpoint, parsed);
    if (parsed != PARSED_TCP)
        return not_tcp(&packet, endpoint, ifindex, parsed);

    starts = (packet.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
    if (starts && packet.key.dport == 0 && answers_canary(skb, &packet, endpoint))
        return send_to_proxy(skb, endpoint, VERDICT_CANARY);
    if (!destination_belongs(ifindex, &packet))
        return pass(endpoint, VERDICT_NOT_OURS);
    sk = connection_socket(skb, &packet.key, packet.family);
    if (!sk)
        return starts ? start(skb, &packet, endpoint) : without_socket(skb, &packet, endpoint);
    /* A SYN for a socket in TIME_WAIT is a new connection on an old tuple. */
    again = starts && sk->state == BPF_TCP_TIME_WAIT;
    if (!again)
        known_at(skb, sk, &packet, endpoint);
    bpf_sk_release(sk);
    return again ? start(skb, &packet, endpoint) : send_to_proxy(skb, endpoint, VERDICT_FLOW_PACKET);
}
