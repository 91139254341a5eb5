/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* From an Ethernet frame to a TCP tuple, or to the reason why there is none. */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"

#define AF_INET 2
#define AF_INET6 10

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET_MASK 0x1fff
#define VLAN_ID_MASK 0x0fff
#define MAX_EXTENSION_HEADERS 8

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* parse() found TCP; anything else it returns is an enum verdict. */
#define PARSED_TCP (-1)

struct packet {
    __u32 ifindex; /* of the interface that it is at */
    struct flow_key key;
    __u32 l3;
    __u32 l4;
    __u8 family;
    __u8 tcp_flags;
    __u8 tagged; /* behind a VLAN tag that names a VLAN */
    __u8 fragment;
};

struct vlan_tag {
    __be16 tci;
    __be16 next;
};

struct extension_header {
    __u8 next;
    __u8 length; /* in units of 8 bytes after the first 8, except for the fragment header and AH */
    __u8 type;
    __u8 segments_left;
};

static __always_inline void map_v4(struct address *to, __be32 v4) {
    __builtin_memset(to->bytes, 0, 10);
    to->bytes[10] = 0xff;
    to->bytes[11] = 0xff;
    __builtin_memcpy(&to->bytes[12], &v4, sizeof(v4));
}

static __always_inline bool is_mapped(const struct address *address) {
    for (int i = 0; i < 10; i++) {
        if (address->bytes[i])
            return false;
    }
    return address->bytes[10] == 0xff && address->bytes[11] == 0xff;
}

static __always_inline int parse_tcp(struct __sk_buff *skb, struct packet *packet) {
    struct tcphdr tcp;

    if (packet->tagged)
        return VERDICT_VLAN;
    if (bpf_skb_load_bytes(skb, packet->l4, &tcp, sizeof(tcp)))
        return VERDICT_MALFORMED;
    if (tcp.doff < 5)
        return VERDICT_MALFORMED;
    packet->key.sport = bpf_ntohs(tcp.source);
    packet->key.dport = bpf_ntohs(tcp.dest);
    packet->tcp_flags = ((__u8 *)&tcp)[13];
    return PARSED_TCP;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *packet) {
    struct iphdr ip;
    __u32 available = skb->len - packet->l3;
    __u32 total;

    if (bpf_skb_load_bytes(skb, packet->l3, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
        return VERDICT_MALFORMED;
    total = bpf_ntohs(ip.tot_len);
    /* A GSO packet beyond 64 KiB (BIG TCP) carries total length 0. */
    if (!(total == 0 && skb->gso_size) && (total < ip.ihl * 4 || total > available))
        return VERDICT_MALFORMED;
    packet->family = AF_INET;
    packet->l4 = packet->l3 + ip.ihl * 4;
    packet->key.protocol = ip.protocol;
    map_v4(&packet->key.src, ip.saddr);
    map_v4(&packet->key.dst, ip.daddr);
    packet->fragment = !!(ip.frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK));
    if (ip.protocol != IPPROTO_TCP)
        return VERDICT_NOT_TCP;
    if (packet->fragment)
        return VERDICT_FRAGMENT;
    return parse_tcp(skb, packet);
}

static __always_inline bool is_extension(__u8 protocol) {
    return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS ||
           protocol == IPPROTO_AH || protocol == IPPROTO_FRAGMENT;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *packet) {
    struct extension_header extension;
    struct ipv6hdr ip;
    __u8 next;

    if (bpf_skb_load_bytes(skb, packet->l3, &ip, sizeof(ip)) || ip.version != 6)
        return VERDICT_MALFORMED;
    /* Payload length 0 is a jumbogram or, with GSO, BIG TCP. */
    if (bpf_ntohs(ip.payload_len) > skb->len - packet->l3 - sizeof(ip))
        return VERDICT_MALFORMED;
    packet->family = AF_INET6;
    packet->l4 = packet->l3 + sizeof(ip);
    __builtin_memcpy(&packet->key.src, &ip.saddr, sizeof(packet->key.src));
    __builtin_memcpy(&packet->key.dst, &ip.daddr, sizeof(packet->key.dst));
    /* No packet bears these on the wire (RFC 4038, 4.2); here they would stand for an IPv4 address. */
    if (is_mapped(&packet->key.src) || is_mapped(&packet->key.dst))
        return VERDICT_MALFORMED;
    next = ip.nexthdr;
    for (int i = 0; i < MAX_EXTENSION_HEADERS && is_extension(next); i++) {
        if (bpf_skb_load_bytes(skb, packet->l4, &extension, sizeof(extension)))
            return VERDICT_MALFORMED;
        if (next == IPPROTO_FRAGMENT) {
            /* What stands behind a later fragment cannot be seen, and an extension header here may hide TCP. */
            if (extension.next == IPPROTO_TCP || is_extension(extension.next))
                return VERDICT_FRAGMENT;
            packet->fragment = 1;
            packet->key.protocol = extension.next;
            return VERDICT_NOT_TCP;
        }
        /* The address in the header is then not the destination (RFC 8200, 4.4). */
        if (next == IPPROTO_ROUTING && extension.segments_left)
            return VERDICT_EXTENSION_HEADERS;
        packet->l4 += next == IPPROTO_AH ? (extension.length + 2) * 4 : (extension.length + 1) * 8;
        next = extension.next;
    }
    if (is_extension(next))
        return VERDICT_EXTENSION_HEADERS;
    packet->key.protocol = next;
    if (next != IPPROTO_TCP)
        return VERDICT_NOT_TCP;
    return parse_tcp(skb, packet);
}

/* Fills `packet` as far as the frame allows. The addresses are set for every verdict but NOT_IP and MALFORMED. */
static __always_inline int parse(struct __sk_buff *skb, struct packet *packet) {
    __be16 protocol = skb->protocol;
    struct vlan_tag tag;

    packet->l3 = sizeof(struct ethhdr);
    /* The kernel has moved an outer tag into the skb; VLAN 0 is a priority tag (IEEE 802.1Q, 9.6). */
    if (skb->vlan_present && (skb->vlan_tci & VLAN_ID_MASK))
        packet->tagged = 1;
    for (int i = 0; i < 2; i++) {
        if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
            break;
        if (bpf_skb_load_bytes(skb, packet->l3, &tag, sizeof(tag)))
            return VERDICT_MALFORMED;
        packet->tagged = 1; /* an inner tag: the stack would not deliver it here, whatever it names */
        packet->l3 += sizeof(tag);
        protocol = tag.next;
    }
    if (protocol == bpf_htons(ETH_P_IP))
        return parse_ipv4(skb, packet);
    if (protocol == bpf_htons(ETH_P_IPV6))
        return parse_ipv6(skb, packet);
    if (protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD))
        return VERDICT_VLAN;
    return VERDICT_NOT_IP;
}
