// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* bridge_steer: tc ingress of a bridge that has enrolled ports. What pod_egress sent here bears our mark, has
 * passed the source check and, if it starts a connection, is recorded in `flows`; it lacks only its socket,
 * which the redirect scrubbed (docs/datapath.md, "Who relies on whom"). */
#include "sockets.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define PACKET_HOST 0

static __always_inline struct bpf_sock *recorded_listener(const struct packet *packet, __u32 *endpoint_id) {
    struct flow *flow = bpf_map_lookup_elem(&flows, &packet->key);

    if (!flow)
        return NULL;
    *endpoint_id = flow->endpoint;
    return listener_socket(flow->instance, flow->direction, packet->family);
}

SEC("tc")
int bridge_steer(struct __sk_buff *skb) {
    struct packet packet = {};
    struct bpf_sock *sk;
    __u32 endpoint_id = 0;

    if ((skb->mark & mark_mask) != mark_value)
        return TC_ACT_UNSPEC;
    /* Still addressed to the MAC of the pod's gateway or of its neighbour on the bridge. */
    if (parse(skb, &packet) != PARSED_TCP || bpf_skb_change_type(skb, PACKET_HOST))
        goto lost;
    sk = connection_socket(skb, &packet.key, packet.family);
    if (!sk)
        sk = recorded_listener(&packet, &endpoint_id);
    if (!sk)
        goto lost;
    if (!give(skb, sk)) {
        count(endpoint_id, VERDICT_ASSIGN_FAILED);
        return TC_ACT_SHOT;
    }
    return TC_ACT_OK;

lost:
    count(endpoint_id, VERDICT_STEER_LOST);
    return TC_ACT_SHOT;
}
