/** Makes an authority and the one server certificate that it ever signs: its key is forgotten, so no other can follow. */

// tsyringe, by which @peculiar/x509 puts itself together, needs it to be there before.
import 'reflect-metadata';
import { createPrivateKey, randomBytes, type webcrypto } from 'node:crypto';
import { isIP } from 'node:net';
import {
  BasicConstraintsExtension,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  KeyUsageFlags,
  KeyUsagesExtension,
  SubjectAlternativeNameExtension,
  X509CertificateGenerator,
} from '@peculiar/x509';

export interface Generation {
  /** Unix time, in milliseconds, as is `endsMs`. */
  readonly madeMs: number;
  readonly endsMs: number;
  /** PEM, as are the two below. */
  readonly authority: string;
  readonly certificate: string;
  readonly key: string;
}

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
/** Other machines' clocks may be behind. */
const BACKDATED_MS = 3_600_000;

/** For a server of these DNS names or addresses, from now (Unix time) on. */
export async function makeGeneration(
  names: readonly string[],
  nowMs: number,
  lifetimeMs: number,
): Promise<Generation> {
  const { subtle } = globalThis.crypto;
  const pair = () => subtle.generateKey(ALGORITHM, true, ['sign', 'verify']);
  const [authorityKeys, serverKeys] = [await pair(), await pair()];
  // Of seconds, as in the certificate.
  const endsMs = Math.floor((nowMs + lifetimeMs) / 1_000) * 1_000;
  const validity = { notBefore: new Date(nowMs - BACKDATED_MS), notAfter: new Date(endsMs) };
  // A name of its own for each: a verifier that knows two of one name may try the wrong one only.
  const issuer = `CN=nodesentry-webhook-ca-${randomBytes(8).toString('hex')}`;
  const authority = await X509CertificateGenerator.createSelfSigned({
    ...validity,
    name: issuer,
    serialNumber: serialNumber(),
    keys: authorityKeys,
    signingAlgorithm: ALGORITHM,
    extensions: [
      new BasicConstraintsExtension(true, 0, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign, true),
    ],
  });
  const certificate = await X509CertificateGenerator.create({
    ...validity,
    subject: 'CN=nodesentry-webhook',
    issuer,
    serialNumber: serialNumber(),
    publicKey: serverKeys.publicKey,
    signingKey: authorityKeys.privateKey,
    signingAlgorithm: ALGORITHM,
    extensions: [
      new BasicConstraintsExtension(false, undefined, true),
      new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
      new ExtendedKeyUsageExtension([ExtendedKeyUsage.serverAuth]),
      new SubjectAlternativeNameExtension(names.map(generalName)),
    ],
  });
  return {
    madeMs: nowMs,
    endsMs,
    authority: authority.toString('pem'),
    certificate: certificate.toString('pem'),
    key: await pemOf(serverKeys.privateKey),
  };
}

async function pemOf(key: webcrypto.CryptoKey): Promise<string> {
  const der = Buffer.from(await globalThis.crypto.subtle.exportKey('pkcs8', key));
  return createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
    .export({ format: 'pem', type: 'pkcs8' })
    .toString();
}

/** Positive, at most 20 octets, at least 64 random bits (RFC 5280, 4.1.2.2). */
function serialNumber(): string {
  return `4e${randomBytes(15).toString('hex')}`;
}

function generalName(value: string): { type: 'dns' | 'ip'; value: string } {
  return { type: isIP(value) === 0 ? 'dns' : 'ip', value };
}
