/** What each door has besides questions about pods. */

import { HEALTH_SERVICE, IDENTITY_SERVICE } from '../api/grpc-protos.js';
import { type Check, doorsOf, eventually, same, truth } from './check.js';
import { listedFlows, listedPods } from './node-facts.js';

interface Document {
  readonly openapi: string;
  readonly paths: Readonly<
    Record<string, Readonly<Record<string, { readonly responses: Readonly<Record<string, unknown>> }>>>
  >;
}

interface Service {
  readonly namespace: string;
  readonly app: string;
  readonly pods: readonly { readonly uid: string }[];
}

export const DOOR_CHECKS: readonly Check[] = [
  {
    id: 'http.rules',
    says: 'the guard header, unknown paths, wrong methods',
    run: async ({ http }) => {
      const reply = async (method: string, path: string, guard = true) => {
        const { status, body } = await http.send(method, path, { guard });
        return [status, (body as { readonly reason: string }).reason];
      };
      const unguarded = await reply('GET', '/v1/workloads', false);
      same('without the guard header', [400, 'HEADER_MISSING'], unguarded);
      same('an unknown path', [404, 'NOT_FOUND'], await reply('GET', '/v1/nothing-of-the-kind'));
      same('another method', [405, 'NOT_FOUND'], await reply('PUT', '/v1/workloads'));
      return undefined;
    },
  },
  {
    id: 'http.openapi',
    says: 'every path that /openapi.json describes answers with a status that it describes',
    run: async ({ http }) => {
      const { status, body } = await http.send('GET', '/openapi.json');
      same('/openapi.json', 200, status);
      const { openapi, paths } = body as Document;
      truth(`openapi is ${openapi}, expected 3.1`, openapi.startsWith('3.1'));
      truth('/v1/resolve is not described', paths['/v1/resolve'] !== undefined);
      for (const [path, operations] of Object.entries(paths)) {
        for (const [method, { responses }] of Object.entries(operations)) {
          // Refused where parameters count, so that no stream is opened.
          const asked = `${path.replace(/\{\w+\}/g, 'nobody')}?nobody-knows-this=1`;
          const sent = method === 'post' ? { body: '{}' } : {};
          const reply = await http.send(method.toUpperCase(), asked, sent);
          const { reason } = { reason: '', ...(reply.body as object) };
          truth(
            `${method} ${asked}: ${reply.status} ${reason} is not described`,
            responses[reply.status] !== undefined && reason !== 'NOT_FOUND',
          );
        }
      }
      return undefined;
    },
  },
  {
    id: 'http.authorize',
    says: 'the sender of a recorded flow, as a header',
    run: async ({ http }) => {
      let asked = 0;
      for (const { src, dst, direction } of await listedFlows({ http })) {
        const flow = new URLSearchParams({ src, dst });
        const answer = await http.ask({ proto: 'tcp', src, dst });
        if (direction === 'EGRESS' && !('reason' in answer)) {
          asked += 1;
          const { status, headers } = await http.send('GET', `/v1/authorize?${flow}`);
          same(`${src} to ${dst}`, [200, answer.spiffeId], [status, headers['x-spiffe-id']]);
        }
      }
      return asked === 0 ? 'no flow that a pod with a name has sent is recorded' : undefined;
    },
  },
  {
    id: 'http.services',
    says: 'every live pod with an app and a name is in one service, that of its app',
    run: async ({ http }) => {
      const services = async () => {
        const { body } = await http.send('GET', '/v1/services');
        return (body as { services: readonly Service[] }).services
          .flatMap(({ namespace, app, pods }) => pods.map(({ uid }) => `${namespace}/${app} ${uid}`))
          .sort();
      };
      const pods = async () =>
        (await listedPods({ http }))
          .filter(({ app, spiffeId, state }) => app !== '' && spiffeId !== '' && state === 'LIVE')
          .map(({ namespace, app, uid }) => `${namespace}/${app} ${uid}`)
          .sort();
      await eventually('the workloads and the services', async () => [await pods(), await services()]);
      return undefined;
    },
  },
  {
    id: 'status.same',
    says: 'both doors are of one agent',
    run: async (context) => {
      const [one, other] = await Promise.all(doorsOf(context).map((door) => door.status()));
      same('the status by HTTP and gRPC', one, other);
      return undefined;
    },
  },
  {
    id: 'grpc.health',
    says: 'grpc.health.v1 says what /readyz says',
    run: async ({ http, grpc }) => {
      await eventually('/readyz and grpc.health.v1', async () => {
        const { status } = await http.send('GET', '/readyz', { guard: false });
        const ready = status === 200 ? 'SERVING' : 'NOT_SERVING';
        return [
          [ready, ready],
          [await grpc.health(''), await grpc.health(IDENTITY_SERVICE)],
        ];
      });
      const unknown = await grpc.health('nobody.serves.This').catch(() => 'refused');
      same('the health of a service that there is not', 'refused', unknown);
      return undefined;
    },
  },
  {
    id: 'grpc.reflection',
    says: 'server reflection names the services and has their files',
    run: async ({ grpc }) => {
      const services = await grpc.services();
      for (const name of [IDENTITY_SERVICE, HEALTH_SERVICE]) {
        truth(`${name} is not among ${services.join(', ')}`, services.includes(name));
        truth(`there is no file for ${name}`, (await grpc.filesOf(name)) > 0);
      }
      return undefined;
    },
  },
];
