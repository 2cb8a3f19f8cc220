/**
 * Holds every answer that a test gets to the OpenAPI document that the server itself gives out: the status must be documented
 * for that operation, and the body must be of the media type and shape that it says.
 */
import assert from 'node:assert/strict';
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js';
import formats from 'ajv-formats';
import type { HttpAnswer } from './http.ts';

interface Media {
  readonly schema?: object;
}

interface Operation {
  readonly operationId: string;
  readonly parameters?: readonly { readonly name: string; readonly in: string }[];
  readonly requestBody?: object;
  readonly responses: Readonly<Record<string, { readonly content?: Readonly<Record<string, Media>> }>>;
  readonly 'x-access': string;
}

export interface ApiDocument {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components: object;
}

export interface DocumentedOperation {
  readonly id: string;
  readonly method: string;
  readonly path: string;
  readonly access: string;
  readonly statuses: readonly number[];
  readonly operation: Operation;
}

export class Contract {
  readonly operations: readonly DocumentedOperation[];
  /** `OPERATION STATUS` that were answered and fitted. */
  readonly seen = new Set<string>();
  readonly #ajv: Ajv2020;
  readonly #validators = new Map<object, ValidateFunction>();

  constructor(document: ApiDocument) {
    this.#ajv = new Ajv2020({ strict: false, allErrors: true });
    formats.default(this.#ajv);
    this.#ajv.addSchema({ $id: 'https://porthole.test/openapi.json', ...document });
    this.operations = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => ({
        id: operation.operationId,
        method: method.toUpperCase(),
        path,
        access: operation['x-access'],
        statuses: Object.keys(operation.responses).map(Number),
        operation,
      })),
    );
  }

  find(method: string, target: string): DocumentedOperation | undefined {
    const path = target.split('?', 1)[0]!.split('/');
    const wanted = method === 'HEAD' ? 'GET' : method;
    return this.operations.find((operation) => {
      const pattern = operation.path.split('/');
      const isOpen = pattern.at(-1) === '{path}';
      return (
        operation.method === wanted &&
        (isOpen ? path.length >= pattern.length : path.length === pattern.length) &&
        pattern.every((part, i) => part.startsWith('{') || part === path[i])
      );
    });
  }

  /** Fails when the server did not keep its word. */
  check(method: string, target: string, answer: HttpAnswer): void {
    const found = this.find(method, target);
    // A path that is none: only that it is told as a problem can be asked for.
    if (found === undefined) return assert.match(String(answer.headers['content-type']), /^application\/problem\+json/);
    const where = `${found.id} ${answer.status}`;
    const response = found.operation.responses[String(answer.status)];
    assert.ok(response, `${where} is not documented: ${answer.text.slice(0, 300)}`);
    this.seen.add(where);
    if (response.content === undefined) return assert.equal(answer.text, '', `${where} has no body`);
    if (method === 'HEAD') return;
    const type = String(answer.headers['content-type']).split(';', 1)[0]!;
    const media = response.content[type];
    assert.ok(media, `${where} came as ${type}, which is not documented`);
    if (!/json/.test(type) || media.schema === undefined) return;
    const validate = this.#validator(media.schema);
    assert.ok(
      validate(answer.json),
      `${where}: ${this.#ajv.errorsText(validate.errors)}: ${answer.text.slice(0, 300)}`,
    );
  }

  #validator(schema: object): ValidateFunction {
    let validate = this.#validators.get(schema);
    if (validate === undefined) {
      // References are to the document: `#/components/schemas/…`.
      const text = JSON.stringify(schema).replaceAll('"#/', '"https://porthole.test/openapi.json#/');
      validate = this.#ajv.compile(JSON.parse(text) as object);
      this.#validators.set(schema, validate);
    }
    return validate;
  }
}
