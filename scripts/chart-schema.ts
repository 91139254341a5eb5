/** Prints the chart's values.schema.json with what the agent's own schema says of its `config`. */

import { readFileSync } from 'node:fs';
import { configJsonSchema } from '../src/config/schema.js';

interface ObjectSchema {
  readonly properties: Readonly<Record<string, object>>;
  readonly [keyword: string]: unknown;
}

const chart = JSON.parse(readFileSync('deploy/chart/values.schema.json', 'utf8')) as ObjectSchema;
const { $schema: _, ...agent } = configJsonSchema() as ObjectSchema;
// One name for all nodes would be wrong on all but one.
const { node: __, ...properties } = agent.properties;
const config = {
  ...agent,
  properties: { ...properties, sources: { ...properties.sources, minProperties: 1 } },
  required: ['sources'],
};
const schema = { ...chart, properties: { ...chart.properties, config } };
process.stdout.write(`${JSON.stringify(schema, null, 2)}\n`);
