// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* bridge_steer: tc ingress of a bridge that has enrolled ports, for what pod_egress sends here. */
#include "steer.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("tc")
int bridge_steer(struct __sk_buff *skb) {
    return is_marked(skb) ? steer(skb, DIRECTION_EGRESS) : TC_ACT_UNSPEC;
}
