import { beforeEach, describe, expect, test } from 'vitest';
import { IdentityError } from '../../src/identity/errors.js';
import type { ResolveQuery } from '../../src/identity/resolve.js';
import { interceptionReport } from '../../src/identity/workload.js';
import { addWeb, DST, endpoint, flowRecord, identityParts, pod, SRC, uid } from './api-fixture.js';

const QUERY: ResolveQuery = { proto: 'tcp', src: SRC, dst: DST };
const OTHER_DST = { ip: '10.200.1.2', port: 80 };

let state: { synced: boolean; blockers: string[]; nowMs: number };
let parts: ReturnType<typeof identityParts>;

beforeEach(() => {
  state = { synced: true, blockers: [], nowMs: 1_000_000 };
  parts = identityParts(state);
  addWeb(parts.store, parts.datapath);
});

function refusal(query: ResolveQuery): IdentityError {
  try {
    parts.identity.resolve(query);
  } catch (error) {
    if (error instanceof IdentityError) {
      return error;
    }
    throw error;
  }
  throw new Error('it was answered');
}

describe('a flow that the datapath recorded', () => {
  test('has exactly the answer that the contract shows', () => {
    const answer = parts.identity.resolve(QUERY);
    expect(answer).toEqual({
      workload: {
        uid: 'uid-web-0',
        generation: 3,
        spiffeId: 'spiffe://cluster.local/ns/default/sa/web',
        namespace: 'default',
        podName: 'web-0',
        podUid: 'uid-web-0',
        serviceAccount: 'web',
        app: 'web',
        runtime: 'runsc',
        runtimeHandler: 'gvisor',
        sandboxId: 'sandbox',
        ips: ['10.66.0.3'],
        labels: { app: 'web', 'nodesentry.io/intercept': 'enabled' },
        node: 'node-a',
        state: 'LIVE',
      },
      direction: 'EGRESS',
      mode: 'INTERCEPTED',
      original: { src: '10.66.0.3:41886', dst: '10.200.1.1:80' },
      instance: 'default',
      assurance: 'DATAPATH_RECORDED',
      epoch: 'epoch-1',
      revision: 1,
      ttlMs: 1000,
      source: { workload: answer.workload, assurance: 'DATAPATH_RECORDED' },
      destination: { workload: null, reason: 'WORKLOAD_NOT_FOUND' },
    });
    expect(Object.keys(answer)).toEqual([
      'workload',
      'direction',
      'original',
      'instance',
      'assurance',
      'epoch',
      'revision',
      'ttlMs',
      'source',
      'destination',
      'mode',
    ]);
  });

  test('names the other end by its address only to those who ask for less', () => {
    parts.store.replaceSource('static', [
      ...parts.store.list(),
      pod('db-0', { ips: [DST.ip], serviceAccount: 'db' }),
    ]);
    expect(parts.identity.resolve(QUERY).destination).toEqual({
      workload: null,
      reason: 'ASSURANCE_TOO_LOW',
    });
    const { source, destination } = parts.identity.resolve({ ...QUERY, minAssurance: 'IP_ONLY' });
    expect(source).toMatchObject({ workload: { podName: 'web-0' }, assurance: 'DATAPATH_RECORDED' });
    expect(destination).toMatchObject({ workload: { podName: 'db-0' }, assurance: 'IP_ONLY' });
  });

  test('of two pods names each in the record of the other', () => {
    parts.store.replaceSource('static', [
      ...parts.store.list(),
      pod('db-0', { ips: [DST.ip], serviceAccount: 'db' }),
    ]);
    const names = () => {
      const { direction, source, destination } = parts.identity.resolve({
        ...QUERY,
        minAssurance: 'IP_ONLY',
      });
      return [direction, source.workload?.podName, destination.workload?.podName];
    };
    expect(names()).toEqual(['EGRESS', 'web-0', 'db-0']);
    parts.datapath.owners.set('2/1', uid('uid-db-0'));
    parts.datapath.statuses.push(endpoint(uid('uid-db-0'), { endpointId: 2, generation: 1 }));
    parts.datapath.flows[0] = flowRecord(SRC, DST, { direction: 'INGRESS', endpointId: 2, generation: 1 });
    expect(names()).toEqual(['INGRESS', 'web-0', 'db-0']);
  });

  test('takes direction, instance and generation from the record', () => {
    parts.datapath.flows[0] = flowRecord(SRC, DST, {
      direction: 'INGRESS',
      instance: 'payments',
      generation: 2,
    });
    parts.datapath.owners.set('1/2', uid('uid-web-0'));
    const answer = parts.identity.resolve(QUERY);
    expect([answer.direction, answer.instance, answer.workload.generation]).toEqual([
      'INGRESS',
      'payments',
      2,
    ]);
  });

  test('belongs to its pod for 60 s after the pod went, as TERMINATING, and to nobody later', () => {
    parts.store.replaceSource('static', []);
    state.nowMs += 59_999;
    expect(parts.identity.resolve(QUERY).workload).toMatchObject({ podName: 'web-0', state: 'TERMINATING' });
    state.nowMs += 2;
    expect(refusal(QUERY)).toMatchObject({ code: 'WORKLOAD_NOT_FOUND', status: 404 });
  });

  describe('counts no longer once another pod has the address, and may have sent the same again', () => {
    const answersFor = (name: string) => {
      expect(refusal(QUERY)).toMatchObject({ code: 'ASSURANCE_TOO_LOW', status: 412 });
      expect(parts.identity.resolve({ ...QUERY, minAssurance: 'IP_ONLY' })).toMatchObject({
        workload: { podName: name, state: 'LIVE' },
        assurance: 'IP_ONLY',
      });
    };

    test('because its pod has gone', () => {
      parts.store.replaceSource('static', [pod('web-1')]);
      answersFor('web-1');
    });

    test('because its pod has gone for Kubernetes, while the runtime still lists it under another address', () => {
      parts = identityParts(state, [{ name: 'kubernetes', lastError: undefined }]);
      addWeb(parts.store, parts.datapath);
      parts.store.replaceSource('static', []);
      const [old, next] = [
        pod('web-0', { sources: ['kubernetes'] }),
        pod('web-1', { sources: ['kubernetes'] }),
      ];
      parts.store.replaceSource('cri', [pod('web-0', { ips: ['10.66.0.9'], sources: ['cri'] })]);
      parts.store.replaceSource('kubernetes', [old]);
      parts.store.replaceSource('kubernetes', [next]);
      answersFor('web-1');
    });

    test('because its pod was enrolled anew, under another address', () => {
      parts.datapath.statuses[0] = endpoint(uid('uid-web-0'), { generation: 4 });
      parts.store.replaceSource('static', [pod('web-0', { ips: ['10.66.0.9'] }), pod('web-1')]);
      answersFor('web-1');
    });

    test('because nobody knows any more whose it was', () => {
      parts.datapath.owners.clear();
      parts.datapath.statuses.length = 0;
      answersFor('web-0');
    });

    test('where two others have it, that is AMBIGUOUS; where nobody is named yet, NOT_SYNCED', () => {
      parts.store.replaceSource('static', [pod('web-1'), pod('web-2')]);
      expect(refusal(QUERY).code).toBe('AMBIGUOUS');
      parts.store.replaceSource('static', []);
      parts.datapath.statuses.length = 0;
      state.nowMs += 60_001;
      expect(refusal(QUERY)).toMatchObject({
        code: 'WORKLOAD_NOT_FOUND',
        message:
          'the flow was recorded for a pod that has gone, and no pod of this node has the address 10.66.0.3',
      });
      state.synced = false;
      expect(refusal(QUERY).code).toBe('NOT_SYNCED');
    });
  });

  test('is still that of a pod that was enrolled anew, while nobody else has the address', () => {
    parts.datapath.statuses[0] = endpoint(uid('uid-web-0'), { generation: 4 });
    expect(parts.identity.resolve(QUERY)).toMatchObject({
      workload: { podName: 'web-0', generation: 3 },
      assurance: 'DATAPATH_RECORDED',
    });
  });

  test('of an endpoint that nobody knows is never answered from the address instead', () => {
    parts.datapath.owners.clear();
    expect(refusal(QUERY).code).toBe('WORKLOAD_NOT_FOUND');
    state.synced = false;
    expect(refusal(QUERY)).toMatchObject({ code: 'NOT_SYNCED', status: 503 });
  });

  test('of a pod that no source has named yet is NOT_SYNCED', () => {
    parts.datapath.owners.set('1/3', uid('uid-late'));
    state.synced = false;
    expect(refusal(QUERY).code).toBe('NOT_SYNCED');
  });

  test('is named by its interface even where two pods claim the address', () => {
    parts.store.replaceSource('static', [pod('web-0'), pod('web-1')]);
    expect(parts.identity.resolve(QUERY)).toMatchObject({
      workload: { podName: 'web-0' },
      assurance: 'DATAPATH_RECORDED',
    });
  });
});

describe('a flow without a record', () => {
  const query: ResolveQuery = { ...QUERY, dst: OTHER_DST, minAssurance: 'IP_ONLY' };

  test('is IP_ONLY, also where the pod is intercepted: anybody beside it can send from its address', () => {
    expect(parts.identity.resolve(query)).toMatchObject({
      assurance: 'IP_ONLY',
      instance: 'default',
      workload: { generation: 3 },
    });
    parts.datapath.statuses.length = 0;
    expect(parts.identity.resolve(query)).toMatchObject({
      assurance: 'IP_ONLY',
      instance: '',
      workload: { generation: 0 },
    });
  });

  test('of an address that two live pods claim is AMBIGUOUS, never a guess', () => {
    parts.store.replaceSource('static', [pod('web-0'), pod('web-1')]);
    const error = refusal(query);
    expect([error.code, error.status]).toEqual(['AMBIGUOUS', 409]);
    expect(error.message).toContain('default/web-0, default/web-1');
  });

  test('of an unknown address is WORKLOAD_NOT_FOUND, and NOT_SYNCED before all sources have answered', () => {
    const unknown: ResolveQuery = { ...query, src: { ip: '10.66.0.9', port: 1 } };
    expect(refusal(unknown).code).toBe('WORKLOAD_NOT_FOUND');
    state.synced = false;
    expect(refusal(unknown).code).toBe('NOT_SYNCED');
  });

  test('of a removed pod is not found by its address', () => {
    parts.store.replaceSource('static', []);
    expect(refusal(query).code).toBe('WORKLOAD_NOT_FOUND');
  });

  test('of a pod on the host network is not found by its address', () => {
    parts.store.replaceSource('static', [pod('web-0', { hostNetwork: true })]);
    expect(refusal(query).code).toBe('WORKLOAD_NOT_FOUND');
  });

  test('with less assurance than asked for is refused', () => {
    for (const minAssurance of ['DATAPATH_RECORDED', 'IP_AND_IFACE'] as const) {
      expect(refusal({ ...query, minAssurance })).toMatchObject({
        code: 'ASSURANCE_TOO_LOW',
        status: 412,
        message: `the flow is known with IP_ONLY, which is less than ${minAssurance}: minAssurance IP_ONLY asks for such answers`,
      });
    }
    expect(parts.identity.resolve({ ...QUERY, minAssurance: 'DATAPATH_RECORDED' }).assurance).toBe(
      'DATAPATH_RECORDED',
    );
  });

  test('is refused to those who do not ask for weak answers', () => {
    expect(refusal({ ...QUERY, dst: OTHER_DST })).toMatchObject({ code: 'ASSURANCE_TOO_LOW', status: 412 });
  });

  test('over IPv6 shows its addresses in brackets', () => {
    parts.store.replaceSource('static', [pod('web-0', { ips: ['fd00:66::3'] })]);
    const src = { ip: 'fd00:66::3', port: 5 };
    expect(parts.identity.resolve({ ...query, src, dst: { ip: 'fd00::1', port: 80 } }).original).toEqual({
      src: '[fd00:66::3]:5',
      dst: '[fd00::1]:80',
    });
  });
});

describe('where Kubernetes is asked for identities', () => {
  let kubernetes: { name: 'kubernetes'; lastError: string | undefined };
  const fromCri = () => pod('web-0', { serviceAccount: '', sources: ['cri'] });
  const byAddress: ResolveQuery = { ...QUERY, dst: OTHER_DST };

  beforeEach(() => {
    kubernetes = { name: 'kubernetes', lastError: undefined };
    parts = identityParts(state, [kubernetes]);
    addWeb(parts.store, parts.datapath);
    parts.store.replaceSource('static', []);
    parts.store.replaceSource('cri', [fromCri()]);
  });

  test('a pod that it has not told of is NOT_SYNCED, by record and by address, never the default account', () => {
    for (const query of [QUERY, byAddress]) {
      expect(refusal(query)).toMatchObject({
        code: 'NOT_SYNCED',
        message: 'kubernetes has not told of pod default/web-0 yet',
      });
    }
    kubernetes.lastError = 'connect ECONNREFUSED';
    expect(refusal(QUERY).message).toContain('(kubernetes is behind: connect ECONNREFUSED)');
    parts.store.replaceSource('kubernetes', [pod('web-0', { sources: ['kubernetes'] })]);
    expect(parts.identity.resolve(QUERY).workload.spiffeId).toBe('spiffe://cluster.local/ns/default/sa/web');
  });

  test('such a pod is listed without SPIFFE ID and service account', () => {
    expect(parts.identity.workload(uid('uid-web-0')).workload).toMatchObject({
      podName: 'web-0',
      state: 'LIVE',
      spiffeId: '',
      serviceAccount: '',
    });
  });

  test('a pod that has no service account there has no identity, whatever its labels say', () => {
    parts.store.replaceSource('cri', [pod('web-0', { serviceAccount: 'admin', sources: ['cri'] })]);
    parts.store.replaceSource('kubernetes', [pod('web-0', { serviceAccount: '', sources: ['kubernetes'] })]);
    for (const query of [QUERY, byAddress]) {
      expect(refusal(query)).toMatchObject({
        code: 'WORKLOAD_NOT_FOUND',
        message: expect.stringContaining('pod default/web-0 has no service account'),
      });
    }
    expect(parts.identity.workload(uid('uid-web-0')).workload).toMatchObject({
      spiffeId: '',
      serviceAccount: '',
    });
  });

  test('a pod that it told of keeps its name while it is away', () => {
    parts.store.replaceSource('kubernetes', [pod('web-0', { sources: ['kubernetes'] })]);
    kubernetes.lastError = 'connect ECONNREFUSED';
    expect(parts.identity.resolve(QUERY).workload.serviceAccount).toBe('web');
  });

  test('a pod of the static file needs no other word', () => {
    parts.store.replaceSource('static', [pod('web-0')]);
    expect(parts.identity.resolve(QUERY).workload.serviceAccount).toBe('web');
  });

  test('an unknown address is NOT_SYNCED while it is behind, and WORKLOAD_NOT_FOUND while it follows', () => {
    const unknown: ResolveQuery = { ...QUERY, src: { ip: '10.66.0.9', port: 1 } };
    expect(refusal(unknown).code).toBe('WORKLOAD_NOT_FOUND');
    kubernetes.lastError = 'connect ECONNREFUSED';
    expect(refusal(unknown).code).toBe('NOT_SYNCED');
  });

  test('a pod that it has removed, while the CRI still lists it, is TERMINATING under its own name for 60 s', () => {
    parts.store.replaceSource('kubernetes', [pod('web-0', { sources: ['kubernetes'] })]);
    parts.store.replaceSource('kubernetes', []);
    const terminating = { serviceAccount: 'web', state: 'TERMINATING' };
    expect(parts.identity.resolve(QUERY).workload).toMatchObject(terminating);
    expect(refusal(byAddress).code).toBe('NOT_SYNCED');
    parts.store.replaceSource('cri', []);
    expect(parts.identity.resolve(QUERY).workload).toMatchObject(terminating);
    state.nowMs += 60_001;
    expect(refusal(QUERY).code).toBe('WORKLOAD_NOT_FOUND');
  });

  test('a pod that went without its word stays without a name', () => {
    parts.store.replaceSource('cri', []);
    expect(refusal(QUERY).code).toBe('NOT_SYNCED');
    expect(parts.identity.workload(uid('uid-web-0')).workload).toMatchObject({ spiffeId: '' });
  });
});

describe('where no source knows service accounts', () => {
  const byAddress: ResolveQuery = { ...QUERY, dst: OTHER_DST };
  const fromRuntime = (source: 'cri' | 'cni') => pod('web-0', { serviceAccount: '', sources: [source] });
  const start = (criServiceAccount?: string) => {
    const sources = (['cri', 'cni'] as const).map((name) => ({ name, lastError: undefined }));
    parts = identityParts(state, sources, criServiceAccount);
    addWeb(parts.store, parts.datapath);
    parts.store.replaceSource('static', []);
    parts.store.replaceSource('cri', [fromRuntime('cri')]);
  };

  test('a pod has no name, and the refusal says who was asked and what to add', () => {
    start();
    for (const query of [QUERY, byAddress]) {
      const error = refusal(query);
      expect([error.code, error.status]).toEqual(['WORKLOAD_UNCONFIRMED', 409]);
      expect(error.message).toBe(
        'no source knows the service account of pod default/web-0 (asked: cri and cni): add the source kubernetes, or name the account of such pods, as in sources: {cri: {serviceAccount: default}}',
      );
    }
    expect(parts.identity.workload(uid('uid-web-0')).workload).toMatchObject({
      podName: 'web-0',
      spiffeId: '',
      serviceAccount: '',
    });
  });

  test('a pod has the name that the configuration gives to pods of the CRI', () => {
    start('default');
    expect(parts.identity.resolve(QUERY)).toMatchObject({
      workload: { spiffeId: 'spiffe://cluster.local/ns/default/sa/default' },
      assurance: 'DATAPATH_RECORDED',
    });
  });

  test('a pod that only the CNI plugin has told of is NOT_SYNCED until the CRI tells of it', () => {
    start('default');
    parts.store.replaceSource('cri', []);
    parts.store.replaceSource('cni', [fromRuntime('cni')]);
    expect(refusal(QUERY)).toMatchObject({
      code: 'NOT_SYNCED',
      message: 'cri has not told of pod default/web-0 yet',
    });
    parts.store.replaceSource('cri', [fromRuntime('cri')]);
    expect(parts.identity.resolve(QUERY).workload.serviceAccount).toBe('default');
  });
});

describe('the interception of a pod', () => {
  const defaults = { enrol: 'labelled', failure: 'closed', other: 'pass' } as const;
  const NO_SPLICE = { used: false, reason: 'the node has it disabled' };

  test('is PENDING until the datapath has looked at a pod that wants it', () => {
    expect(interceptionReport(pod('a'), undefined, defaults, NO_SPLICE)).toMatchObject({
      desired: true,
      programmed: false,
      state: 'PENDING',
    });
    expect(interceptionReport(pod('a', { labels: {} }), undefined, defaults, NO_SPLICE).state).toBe(
      'NOT_ENROLLED',
    );
  });

  test('reports an unknown runtime handler and an annotation that cannot be followed', () => {
    const strange = pod('a', {
      runtime: 'unknown',
      runtimeHandler: 'strange',
      annotations: { 'nodesentry.io/failure': 'maybe' },
    });
    const { problems, state: reached } = interceptionReport(
      strange,
      endpoint(strange.uid),
      defaults,
      NO_SPLICE,
    );
    expect(reached).toBe('INTERCEPTED');
    expect(problems).toEqual([
      'nodesentry.io/failure: expected closed or open, got "maybe"',
      'runtime handler "strange" is not known: name its kind in runtimes.handlers',
    ]);
  });
});
