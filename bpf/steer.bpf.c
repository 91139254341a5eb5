// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* bridge_steer: tc ingress of a bridge that has enrolled ports, for what pod_egress sends here. */
#include "steer.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* An ICMP error that our nftables table has marked, where the bridge's packets pass by it before they come here. */
static __always_inline bool is_error(struct __sk_buff *skb) {
    struct packet packet = {};

    return parse(skb, &packet) == VERDICT_NOT_TCP &&
           (packet.key.protocol == IPPROTO_ICMP || packet.key.protocol == IPPROTO_ICMPV6);
}

SEC("tc")
int bridge_steer(struct __sk_buff *skb) {
    if (!is_marked(skb) || is_error(skb))
        return TC_ACT_UNSPEC;
    return steer(skb, DIRECTION_EGRESS);
}
