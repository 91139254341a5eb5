import { defineConfig } from 'vitest/config';

/** `make test-k8s`: not part of `make test`, since building the API server takes minutes. */
export default defineConfig({
  test: {
    name: 'k8s',
    root: new URL('../..', import.meta.url).pathname,
    globalSetup: ['test/lab/global-setup.ts'],
    include: ['test/k8s/**/*.test.ts'],
    fileParallelism: false,
    testTimeout: 120_000,
    hookTimeout: 180_000,
  },
});
