/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* How a packet ends that no socket gets: passed on, dropped, or answered by a reset. */
#pragma once

#include "records.h"

#define TCP_CHECKSUM_OFFSET 16
#define TCP_FLAGS_OFFSET 12

static __always_inline int drop(const struct endpoint *endpoint, enum verdict verdict) {
    count(endpoint->id, verdict);
    return TC_ACT_SHOT;
}

static __always_inline int pass(const struct endpoint *endpoint, enum verdict verdict) {
    count(endpoint->id, verdict);
    return TC_ACT_UNSPEC; /* whoever comes after us at this hook decides */
}

/* Turns the packet into the reset that answers it and sends it back: to the pod, or as if by the pod (RFC
 * 9293, 3.10.7.1). Addresses and ports change places, which no checksum notices; options and data stay where they are
 * and are ignored. */
static __always_inline int reset(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint,
                                 enum verdict verdict) {
    struct {
        __u8 to[ETH_ALEN];
        __u8 from[ETH_ALEN];
    } mac, turned;
    struct tcphdr tcp;
    __u32 checksum = packet->l4 + TCP_CHECKSUM_OFFSET;
    __u32 ip_header = packet->l4 - packet->l3;
    __u32 length;
    __be32 old_sequence, old_acknowledged, sequence, acknowledged;
    __be16 old_flags, flags;
    __u8 *word;

    count(endpoint->id, verdict);
    if (packet->tcp_flags & TCP_RST)
        return TC_ACT_SHOT;
    if (bpf_skb_load_bytes(skb, 0, &mac, sizeof(mac)) || bpf_skb_load_bytes(skb, packet->l4, &tcp, sizeof(tcp)))
        return TC_ACT_SHOT;

    if (packet->family == AF_INET) {
        struct iphdr ip;

        if (bpf_skb_load_bytes(skb, packet->l3, &ip, sizeof(ip)))
            return TC_ACT_SHOT;
        length = bpf_ntohs(ip.tot_len);
    } else {
        struct ipv6hdr ip;

        if (bpf_skb_load_bytes(skb, packet->l3, &ip, sizeof(ip)))
            return TC_ACT_SHOT;
        length = bpf_ntohs(ip.payload_len) + sizeof(ip);
    }
    if (length < ip_header + tcp.doff * 4)
        return TC_ACT_SHOT;
    length -= ip_header + tcp.doff * 4;
    length += !!(packet->tcp_flags & TCP_SYN) + !!(packet->tcp_flags & TCP_FIN);

    old_sequence = tcp.seq;
    old_acknowledged = tcp.ack_seq;
    sequence = packet->tcp_flags & TCP_ACK ? tcp.ack_seq : 0;
    acknowledged = bpf_htonl(bpf_ntohl(tcp.seq) + length);
    word = (__u8 *)&tcp + TCP_FLAGS_OFFSET;
    __builtin_memcpy(&old_flags, word, sizeof(old_flags));
    flags = (old_flags & bpf_htons(0xff00)) | bpf_htons(TCP_RST | TCP_ACK);

    if (bpf_l4_csum_replace(skb, checksum, old_sequence, sequence, 4) ||
        bpf_l4_csum_replace(skb, checksum, old_acknowledged, acknowledged, 4) ||
        bpf_l4_csum_replace(skb, checksum, old_flags, flags, 2))
        return TC_ACT_SHOT;

    __builtin_memcpy(turned.to, mac.from, ETH_ALEN);
    __builtin_memcpy(turned.from, mac.to, ETH_ALEN);
    bpf_skb_store_bytes(skb, 0, &turned, sizeof(turned), 0);
    if (packet->family == AF_INET) {
        bpf_skb_store_bytes(skb, packet->l3 + offsetof(struct iphdr, saddr), &packet->key.dst.bytes[12], 4, 0);
        bpf_skb_store_bytes(skb, packet->l3 + offsetof(struct iphdr, daddr), &packet->key.src.bytes[12], 4, 0);
    } else {
        bpf_skb_store_bytes(skb, packet->l3 + offsetof(struct ipv6hdr, saddr), &packet->key.dst, 16, 0);
        bpf_skb_store_bytes(skb, packet->l3 + offsetof(struct ipv6hdr, daddr), &packet->key.src, 16, 0);
    }
    bpf_skb_store_bytes(skb, packet->l4 + offsetof(struct tcphdr, source), &tcp.dest, sizeof(tcp.dest), 0);
    bpf_skb_store_bytes(skb, packet->l4 + offsetof(struct tcphdr, dest), &tcp.source, sizeof(tcp.source), 0);
    bpf_skb_store_bytes(skb, packet->l4 + offsetof(struct tcphdr, seq), &sequence, sizeof(sequence), 0);
    bpf_skb_store_bytes(skb, packet->l4 + offsetof(struct tcphdr, ack_seq), &acknowledged, sizeof(acknowledged), 0);
    bpf_skb_store_bytes(skb, packet->l4 + TCP_FLAGS_OFFSET, &flags, sizeof(flags), 0);
    return bpf_redirect(packet->ifindex, DIRECTION == DIRECTION_INGRESS ? BPF_F_INGRESS : 0);
}

/* Whether a new flow of the instance would be taken, and in `instance` by which number. */
static __always_inline bool has_listener(__u32 *instance, __u8 family) {
    struct bpf_sock *listener = serving_socket(instance, DIRECTION, family);

    if (!listener)
        return false;
    bpf_sk_release(listener);
    return true;
}

/* `instance`: whose listener it is that lacks. */
static __always_inline int no_listener(struct __sk_buff *skb, const struct packet *packet,
                                       const struct endpoint *endpoint, __u32 instance) {
    if (endpoint->flags & ENDPOINT_FAILURE_OPEN) {
        /* From here on this tuple is an ordinary connection: an old record would make an orphan of it. */
        bpf_map_delete_elem(&flows, &packet->key);
        report(packet, endpoint, instance, packet->ifindex, VERDICT_NO_LISTENER_OPEN);
        return pass(endpoint, VERDICT_NO_LISTENER_OPEN);
    }
    report(packet, endpoint, instance, packet->ifindex, VERDICT_NO_LISTENER_RESET);
    return reset(skb, packet, endpoint, VERDICT_NO_LISTENER_RESET);
}
