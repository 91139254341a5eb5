// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* inbound_steer: tc ingress of the agent's own interface, for what pod_ingress sends here: a socket can be assigned at
 * tc ingress only. Nothing else comes by it but the agent's canaries, on their way to the pods' interfaces. */
#define DIRECTION DIRECTION_INGRESS
#include "canary.h"
#include "steer.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* On its way out it goes to the interface that it names; back with our mark, it is tried at the listener. */
static __always_inline int pass_canary(struct __sk_buff *skb, const struct packet *packet) {
    struct canary_key key = {.family = packet->family};
    struct delivery_trial trial = {};
    struct endpoint *endpoint;
    struct canary *canary;
    __be32 numbers[2]; /* sequence, acknowledgement */

    if (bpf_skb_load_bytes(skb, packet->l4 + offsetof(struct tcphdr, seq), numbers, sizeof(numbers)))
        return TC_ACT_SHOT;
    key.ifindex = bpf_ntohl(numbers[1]);
    canary = bpf_map_lookup_elem(&ingress_canaries, &key);
    if (!canary || bpf_ntohl(numbers[0]) != canary->nonce) /* somebody's own, to port 0 */
        return is_marked(skb) ? steer(skb, DIRECTION_INGRESS) : TC_ACT_SHOT;
    if (!is_marked(skb))
        return bpf_redirect(key.ifindex, 0);
    endpoint = bpf_map_lookup_elem(&endpoints, &key.ifindex);
    if (!endpoint)
        return TC_ACT_SHOT;
    trial.nonce = canary->nonce;
    try_delivery(skb, packet, endpoint, key.ifindex, true, &trial);
    bpf_map_update_elem(&ingress_deliveries, &key, &trial, BPF_ANY);
    canary->listening = trial.outcome != DELIVERY_NO_LISTENER;
    canary->answered = canary->nonce;
    return TC_ACT_SHOT;
}

SEC("tc")
int inbound_steer(struct __sk_buff *skb) {
    struct packet packet = {};

    if (parse(skb, &packet) == PARSED_TCP && packet.key.dport == 0)
        return pass_canary(skb, &packet);
    return is_marked(skb) ? steer(skb, DIRECTION_INGRESS) : TC_ACT_SHOT;
}
