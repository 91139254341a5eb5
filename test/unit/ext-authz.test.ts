import { status } from '@grpc/grpc-js';
import { afterEach, describe, expect, test } from 'vitest';
import { flowRecord, pod } from './api-fixture.js';
import { ask, clientOf, closeAll, refusal, start } from './grpc-fixture.js';

const SERVICE = 'envoy.service.auth.v3.Authorization';
const client = (path: string) => clientOf(path, SERVICE, 'envoy/service/auth/v3/external_auth.proto');
const peer = (address: string, portValue: number) => ({ address: { socketAddress: { address, portValue } } });
/** Of the recorded flow. */
const FLOW = { source: peer('10.66.0.3', 41_886), destination: peer('10.200.1.1', 80) };
const check = (path: string, attributes: object = FLOW) => ask(client(path), 'Check', { attributes });
const text = (stringValue: string) => expect.objectContaining({ stringValue });

afterEach(closeAll);

describe('Check', () => {
  test('lets a flow of a pod pass with its name, in the place of any that the app has sent', async () => {
    const { api } = await start();
    const answer = await check(api.path);
    expect(answer).toMatchObject({
      status: { code: status.OK },
      okResponse: {
        headers: [
          {
            header: { key: 'x-spiffe-id', value: 'spiffe://cluster.local/ns/default/sa/web' },
            appendAction: 'OVERWRITE_IF_EXISTS_OR_ADD',
          },
        ],
      },
      dynamicMetadata: {
        fields: {
          spiffe_id: text('spiffe://cluster.local/ns/default/sa/web'),
          namespace: text('default'),
          pod: text('web-0'),
          service_account: text('web'),
        },
      },
    });
    expect(answer.deniedResponse).toBeUndefined();
  });

  test('denies what nobody has recorded, with the reason', async () => {
    const { api } = await start();
    for (const [source, reason] of [
      [peer('10.66.0.3', 1), 'ASSURANCE_TOO_LOW'],
      [peer('10.66.0.9', 1), 'WORKLOAD_NOT_FOUND'],
    ] as const) {
      const answer = await check(api.path, { ...FLOW, source });
      expect(answer).toMatchObject({
        status: { code: status.PERMISSION_DENIED, message: expect.stringMatching(`^${reason}: `) },
        deniedResponse: { status: { code: 'Forbidden' } },
        dynamicMetadata: { fields: { reason: text(reason) } },
      });
      const { headers, body } = answer.deniedResponse as { headers: object[]; body: string };
      expect(headers).toContainEqual(
        expect.objectContaining({ header: { key: 'x-nodesentry-reason', value: reason } }),
      );
      expect(JSON.parse(body)).toMatchObject({ status: 403, reason });
    }
  });

  test('asks of a flow of UDP where the connection is one', async () => {
    const { api, datapath } = await start();
    const src = { ip: '10.66.0.3', port: 5_353 };
    datapath.flows.push(flowRecord(src, { ip: '10.200.1.1', port: 443 }, { protocol: 'udp' }));
    const ends = { source: peer(src.ip, src.port), destination: peer('10.200.1.1', 443) };
    expect(await check(api.path, ends)).toMatchObject({ status: { code: status.PERMISSION_DENIED } });
    const http3 = { ...ends, request: { http: { protocol: 'HTTP/3' } } };
    expect(await check(api.path, http3)).toMatchObject({ status: { code: status.OK } });
    const { socketAddress } = ends.source.address;
    const source = { address: { socketAddress: { protocol: 'UDP', ...socketAddress } } };
    expect(await check(api.path, { ...ends, source })).toMatchObject({ status: { code: status.OK } });
  });

  test('of what a pod receives the sender counts, never the pod itself', async () => {
    const { api, datapath } = await start();
    const src = { ip: '10.199.0.2', port: 5_000 };
    datapath.flows.push(flowRecord(src, { ip: '10.66.0.3', port: 80 }, { direction: 'INGRESS' }));
    const attributes = { source: peer(src.ip, src.port), destination: peer('10.66.0.3', 80) };
    expect(await check(api.path, attributes)).toMatchObject({
      status: { code: status.PERMISSION_DENIED },
      dynamicMetadata: { fields: { reason: text('WORKLOAD_NOT_FOUND') } },
    });
  });

  test('a pod without a service account is denied', async () => {
    const { api, store } = await start();
    store.replaceSource('static', [pod('web-0', { serviceAccount: '' })]);
    expect(await check(api.path)).toMatchObject({
      status: { code: status.PERMISSION_DENIED },
      dynamicMetadata: { fields: { reason: text('WORKLOAD_UNCONFIRMED') } },
    });
  });

  test('what is no answer about an identity is an error of the call', async () => {
    const { api, state } = await start();
    state.synced = false;
    const unknown = { ...FLOW, source: peer('10.66.0.9', 1) };
    expect(await refusal(check(api.path, unknown))).toMatchObject({
      code: status.UNAVAILABLE,
      reason: 'NOT_SYNCED',
    });
    for (const attributes of [
      {},
      { ...FLOW, source: peer('10.66.0.3', 0) },
      { ...FLOW, source: peer('x', 1) },
    ]) {
      expect(await refusal(check(api.path, attributes))).toMatchObject({
        code: status.INVALID_ARGUMENT,
        reason: 'KEY_INVALID',
      });
    }
  });

  test('is for callers that may resolve', async () => {
    const { api } = await start({ api: '{allow: [{uid: 0, scopes: [watch]}]}' });
    expect(await refusal(check(api.path))).toMatchObject({
      code: status.PERMISSION_DENIED,
      reason: 'CALLER_NOT_ALLOWED',
    });
  });
});
