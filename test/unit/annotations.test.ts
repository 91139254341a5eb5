import { describe, expect, it } from 'vitest';
import { interceptionOf } from '../../src/pods/annotations.js';

const DEFAULTS = { enrol: 'labelled', failure: 'closed', other: 'pass' } as const;

function annotated(annotations: Record<string, string>) {
  return interceptionOf({ labels: {}, annotations }, DEFAULTS);
}

describe('a bad annotation is told in one line, and disables nothing else', () => {
  const ports = 'expected all, none or ports from 1 to 65535 such as 80,8000-8080';
  const cidrs = 'expected CIDRs such as 10.0.0.0/8,fd00::/8';

  it.each([
    ['outbound', '99999', ports],
    ['outbound', '0', ports],
    ['outbound', '80,', ports],
    ['inbound', 'http', ports],
    ['inbound', '90-80', ports],
    ['inbound', '1-2-3', ports],
    ['inbound', '', ports],
    ['exclude-outbound-cidrs', '10.0.0.0', cidrs],
    ['exclude-outbound-cidrs', '10.0.0.0/33', cidrs],
    ['exclude-outbound-cidrs', '10.0.0.0/8,fd00::/129', cidrs],
    ['exclude-outbound-cidrs', 'everything', cidrs],
    ['failure', 'ajar', 'expected closed or open'],
    ['intercept', 'yes', 'expected enabled or disabled'],
  ])('%s: %j', (key, value, expected) => {
    const others = key === 'intercept' ? {} : { 'nodesentry.io/intercept': 'enabled' };
    const policy = key === 'failure' ? {} : { 'nodesentry.io/failure': 'open' };
    const { enrolled, failure, problems } = annotated({
      ...others,
      ...policy,
      [`nodesentry.io/${key}`]: value,
    });
    expect(problems).toEqual([`nodesentry.io/${key}: ${expected}, got ${JSON.stringify(value)}`]);
    expect(enrolled).toBe(key !== 'intercept');
    expect(failure).toBe(key === 'failure' ? 'closed' : 'open');
  });
});

describe('an annotation that is right but comes with a later version', () => {
  it.each([
    ['outbound', '80,8000-8080'],
    ['inbound', 'none'],
    ['exclude-outbound-cidrs', '10.0.0.0/8, fd00::/8'],
  ])('%s: %j', (key, value) => {
    expect(annotated({ [`nodesentry.io/${key}`]: value }).problems).toEqual([
      `nodesentry.io/${key}: ${JSON.stringify(value)} is not available in this version and has no effect`,
    ]);
  });

  it('all is what happens anyway', () => {
    expect(annotated({ 'nodesentry.io/outbound': 'all', 'nodesentry.io/inbound': 'all' }).problems).toEqual(
      [],
    );
  });
});
