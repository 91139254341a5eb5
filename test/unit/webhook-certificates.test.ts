/** The webhook's certificates: by OpenSSL's own judgement, and through ninety days of a clock that we turn. */

import { X509Certificate } from 'node:crypto';
import { request } from 'node:https';
import { describe, expect, it } from 'vitest';
import { KubernetesError } from '../../src/pods/sources/kubernetes-client.js';
import { type Generation, makeGeneration } from '../../src/webhook/certificates.js';
import type { Stored } from '../../src/webhook/cluster.js';
import { CertificateKeeper } from '../../src/webhook/keeper.js';
import { TERMS } from '../../src/webhook/rotation.js';
import { startWebhookServer } from '../../src/webhook/server.js';

const NAMES = [
  'nodesentry-webhook.nodesentry-system.svc',
  'nodesentry-webhook.nodesentry-system',
  '127.0.0.1',
];
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const SILENT = { info: () => undefined, warn: () => undefined, error: () => undefined };
const never = () => new AbortController().signal;

describe('a generation', () => {
  it('is a server certificate of its authority, for the names of the service', async () => {
    const nowMs = Date.UTC(2026, 0, 1);
    const made = await makeGeneration(NAMES, nowMs, TERMS.lifetimeMs);
    const [authority, certificate] = [
      new X509Certificate(made.authority),
      new X509Certificate(made.certificate),
    ];
    expect([authority.ca, certificate.ca]).toEqual([true, false]);
    expect(certificate.verify(authority.publicKey) && certificate.checkIssued(authority)).toBe(true);
    expect(authority.verify(authority.publicKey)).toBe(true);
    expect(certificate.subjectAltName).toBe(`DNS:${NAMES[0]}, DNS:${NAMES[1]}, IP Address:127.0.0.1`);
    expect(certificate.keyUsage).toEqual(['1.3.6.1.5.5.7.3.1']);
    expect(Date.parse(certificate.validFrom)).toBe(nowMs - HOUR_MS);
    expect(Date.parse(certificate.validTo)).toBe(made.endsMs);
    expect(made.endsMs).toBe(nowMs + TERMS.lifetimeMs);
  });
});

/** One Secret and one caBundle for all, as an API server keeps them. */
class SecretStandIn {
  stored: Stored = { version: '1', generations: [] };
  bundle: readonly string[] = [];
  writes = 0;

  async read(): Promise<Stored> {
    return this.stored;
  }

  async write(generations: readonly Generation[], version: string): Promise<Stored> {
    if (version !== this.stored.version) {
      throw new KubernetesError('CONFLICT', 'the object has been modified');
    }
    this.writes += 1;
    this.stored = { version: String(Number(version) + 1), generations };
    return this.stored;
  }

  async publish(authorities: readonly string[]): Promise<void> {
    this.bundle = authorities;
  }
}

function replicas(count: number) {
  const secret = new SecretStandIn();
  const clock = { nowMs: Date.UTC(2026, 0, 1) };
  const all = Array.from({ length: count }, () => {
    const replica = { served: [] as Generation[], keeper: undefined as unknown as CertificateKeeper };
    replica.keeper = new CertificateKeeper({
      cluster: secret,
      names: NAMES,
      terms: TERMS,
      nowMs: () => clock.nowMs,
      log: SILENT,
      onServed: (generation) => replica.served.push(generation),
    });
    return replica;
  });
  return { secret, clock, all };
}

describe('replicas', () => {
  it('that start at once agree on one certificate', async () => {
    const { secret, all } = replicas(3);
    await Promise.all(all.map(({ keeper }) => keeper.round(never())));
    expect(secret.writes).toBe(1);
    expect(new Set(all.map(({ served }) => served.at(-1)?.certificate)).size).toBe(1);
    expect(all.map(({ keeper }) => keeper.ready)).toEqual([true, true, true]);
  });

  it('never serve what is not trusted, nor what has ended, for a year', async () => {
    const { secret, clock, all } = replicas(2);
    for (let hour = 0; hour < 365 * 24; hour += 6) {
      for (const [n, { keeper }] of all.entries()) {
        // The second one looks only every eighteen hours.
        if (n === 0 || hour % 18 === 0) {
          await keeper.round(never());
        }
        for (const { served } of all) {
          const now = served.at(-1);
          if (now !== undefined) {
            expect(secret.bundle).toContain(now.authority);
            expect(now.endsMs - clock.nowMs).toBeGreaterThan(20 * DAY_MS);
          }
        }
      }
      clock.nowMs += 6 * HOUR_MS;
    }
    // One of day 0, and of every sixtieth up to day 360.
    expect(all.map(({ served }) => served.length)).toEqual([7, 7]);
    expect([secret.writes, secret.bundle.length]).toEqual([7, 1]);
  }, 30_000);

  it('go on with the old one where the new one could not be published, and say that they are not ready', async () => {
    const { secret, clock, all } = replicas(1);
    const [{ keeper, served }] = all as [(typeof all)[0]];
    await keeper.round(never());
    const publish = secret.publish.bind(secret);
    secret.publish = () => Promise.reject(new KubernetesError('FORBIDDEN', 'no'));
    clock.nowMs += 61 * DAY_MS;
    await expect(keeper.round(never())).rejects.toThrow('no');
    clock.nowMs += 2 * DAY_MS;
    await expect(keeper.round(never())).rejects.toThrow('no');
    expect(served).toHaveLength(1);
    expect(keeper.ready).toBe(false);
    secret.publish = publish;
    await keeper.round(never());
    expect([served.length, keeper.ready]).toEqual([2, true]);
  });
});

describe('the server', () => {
  const get = (port: number, ca: string, path = '/healthz', body?: string, type = 'application/json') =>
    new Promise<{ status: number; text: string }>((resolve, reject) => {
      const headers = body === undefined ? {} : { 'content-type': type };
      const method = body === undefined ? 'GET' : 'POST';
      const sent = request({ host: '127.0.0.1', port, path, method, ca, agent: false, headers }, (answer) => {
        let text = '';
        answer.on('data', (chunk: Buffer) => {
          text += chunk.toString();
        });
        answer.on('end', () => resolve({ status: answer.statusCode ?? 0, text }));
      });
      sent.on('error', reject).end(body);
    });

  it('takes another certificate while it runs, and tells in one line what is no review', async () => {
    const [one, other] = await Promise.all([1, 2].map(() => makeGeneration(NAMES, Date.now(), DAY_MS)));
    if (one === undefined || other === undefined) {
      throw new Error('no certificates');
    }
    let ready = true;
    const server = await startWebhookServer({
      host: '127.0.0.1',
      port: 0,
      first: one,
      mutate: () => ({}),
      validate: () => ({ refusal: 'no' }),
      ready: () => ready,
      log: SILENT,
    });
    const { port } = server;
    try {
      expect(await get(port, one.authority)).toEqual({ status: 200, text: 'ok\n' });
      await expect(get(port, other.authority)).rejects.toThrow('certificate');
      server.serve(other);
      expect(await get(port, other.authority)).toMatchObject({ status: 200 });
      await expect(get(port, one.authority)).rejects.toThrow('certificate');
      const ca = other.authority;
      ready = false;
      expect(await get(port, ca, '/readyz')).toMatchObject({ status: 503 });
      expect(await get(port, ca, '/mutate', '{"kind":"Pod"}')).toMatchObject({
        status: 400,
        text: expect.stringMatching(/^expected an AdmissionReview [^\n]+: apiVersion: [^\n]+\n$/),
      });
      expect(await get(port, ca, '/mutate', '{')).toMatchObject({ status: 400 });
      expect(await get(port, ca, '/validate', '<a/>', 'text/xml')).toMatchObject({ status: 415 });
      const large = JSON.stringify({ x: 'x'.repeat(9 << 20) });
      const answer = get(port, ca, '/validate', large).catch(() => ({ status: 413 }));
      expect(await answer).toMatchObject({ status: 413 });
    } finally {
      await server.close();
    }
  });
});
