// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* socket_lookup: sk_lookup of the node's network namespace. Names the listener of a flow that pod_egress or pod_ingress
 * has recorded, or the agent for a connection of its own, and of no other, where the kernel looks for one at the
 * packet's own destination: for a first packet that was left to look-up; and for a SYN from a port whose last
 * connection is still in TIME_WAIT at the proxy (RFC 6191). A recorded flow whose listener is gone reaches nothing
 * else, nor does what is for a pod reach a service of the node (docs/datapath.md, "Left to look-up"). */
#include "sockets.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("sk_lookup")
int socket_lookup(struct bpf_sk_lookup *context) {
    struct flow_key key = {.protocol = context->protocol};
    struct endpoint *endpoint;
    struct bpf_sock *listener;
    struct flow *flow;
    bool udp = context->protocol == IPPROTO_UDP;

    if (context->protocol != IPPROTO_TCP && !udp)
        return SK_PASS;
    if (context->family == AF_INET) {
        map_v4(&key.src, context->remote_ip4);
        map_v4(&key.dst, context->local_ip4);
    } else {
        __builtin_memcpy(&key.src, context->remote_ip6, sizeof(key.src));
        __builtin_memcpy(&key.dst, context->local_ip6, sizeof(key.dst));
    }
    key.sport = bpf_ntohs(context->remote_port);
    key.dport = context->local_port;
    flow = bpf_map_lookup_elem(&flows, &key);
    if (udp && (!flow || is_idle(flow)))
        return SK_PASS;
    endpoint = flow ? bpf_map_lookup_elem(&endpoints, &flow->ifindex) : NULL;
    if (!flow || !((endpoint && started_by(flow, endpoint)) || flow->endpoint == AGENT_ENDPOINT))
        return bpf_map_lookup_elem(&inbound, &key.dst) ? SK_DROP : SK_PASS;
    /* Whoever listens there is meant. */
    if (flow->direction == DIRECTION_EXPLICIT)
        return SK_PASS;
    listener = listener_of(udp, flow->instance, flow->direction, context->family);
    if (!listener)
        return SK_DROP;
    bpf_sk_assign(context, listener, 0);
    bpf_sk_release(listener);
    return SK_PASS;
}
