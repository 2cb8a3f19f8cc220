/** The OpenAPI document as one page without scripts: it asks nobody for anything, and nothing in it can run. */
import { html, raw } from 'hono/html';

interface Schema {
  readonly $ref?: string;
  readonly type?: string | readonly string[];
  readonly description?: string;
  readonly enum?: readonly unknown[];
  readonly const?: unknown;
  readonly items?: Schema;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly anyOf?: readonly Schema[];
  readonly oneOf?: readonly Schema[];
  readonly allOf?: readonly Schema[];
  readonly default?: unknown;
  readonly format?: string;
}

interface Media {
  readonly schema?: Schema;
}

interface Operation {
  readonly operationId: string;
  readonly summary: string;
  readonly description?: string;
  readonly tags?: readonly string[];
  readonly parameters?: readonly {
    readonly name: string;
    readonly in: string;
    readonly required?: boolean;
    readonly description?: string;
    readonly schema?: Schema;
  }[];
  readonly requestBody?: { readonly content: Readonly<Record<string, Media>> };
  readonly responses: Readonly<
    Record<string, { readonly description: string; readonly content?: Readonly<Record<string, Media>> }>
  >;
  readonly 'x-access'?: string;
}

export interface Document {
  readonly info: { readonly title: string; readonly version: string; readonly description?: string };
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components?: { readonly schemas?: Readonly<Record<string, Schema>> };
}

type Html = ReturnType<typeof html>;

const nothing = raw('');

const nameOf = ($ref: string): string => $ref.split('/').at(-1)!;

/** Prose of the document, where `backquotes` stand around what is written as it is. */
const prose = (text: string | undefined): Html =>
  html`${(text ?? '').split('`').map((part, i) => (i % 2 === 0 ? part : html`<code>${part}</code>`))}`;

/** A type in a few words, with links to what has a name. */
const typeOf = (schema: Schema | undefined): Html => {
  if (schema === undefined) return html`any`;
  if (schema.$ref !== undefined) return html`<a href="#schema-${nameOf(schema.$ref)}">${nameOf(schema.$ref)}</a>`;
  if (schema.const !== undefined) return html`<code>${JSON.stringify(schema.const)}</code>`;
  if (schema.enum)
    return html`${schema.enum.map((value, i) => html`${i > 0 ? ' | ' : ''}<code>${JSON.stringify(value)}</code>`)}`;
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return html`${choices.map((choice, i) => html`${i > 0 ? ' or ' : ''}${typeOf(choice)}`)}`;
  if (schema.allOf) return html`${schema.allOf.map((part, i) => html`${i > 0 ? ' and ' : ''}${typeOf(part)}`)}`;
  if (schema.items) return html`list of ${typeOf(schema.items)}`;
  if (schema.properties) return propertiesOf(schema);
  const type = Array.isArray(schema.type) ? schema.type.join(' or ') : String(schema.type ?? 'any');
  return html`${type}${schema.format === undefined ? '' : ` (${schema.format})`}`;
};

const propertiesOf = ({ properties = {}, required = [] }: Schema): Html =>
  html`<ul>
    ${Object.entries(properties).map(
      ([name, schema]) =>
        html`<li>
          <code>${name}</code>${required.includes(name) ? '' : ' (optional)'}: ${typeOf(schema)}${
            schema.default === undefined ? '' : html`, default <code>${JSON.stringify(schema.default)}</code>`
          }${schema.description === undefined ? '' : html` — ${prose(schema.description)}`}
        </li>`,
    )}
  </ul>`;

const contentOf = (content: Readonly<Record<string, Media>> | undefined): Html =>
  html`${Object.entries(content ?? {}).map(
    ([type, { schema }]) => html`<div><code>${type}</code>: ${typeOf(schema)}</div>`,
  )}`;

/** Said once, at the top. */
const isProblem = ({ content }: Operation['responses'][string]): boolean =>
  content !== undefined && Object.keys(content).every((type) => type === 'application/problem+json');

const operationOf = (path: string, method: string, operation: Operation): Html =>
  html`<section id="${operation.operationId}">
    <h3>${prose(operation.summary)}</h3>
    <p><code>${method.toUpperCase()} ${path}</code> <span class="access">role: ${operation['x-access'] ?? ''}</span></p>
    <p>${prose(operation.description)}</p>
    ${
      operation.parameters
        ? html`<table>
            ${operation.parameters.map(
              (parameter) =>
                html`<tr>
                  <td><code>${parameter.name}</code></td>
                  <td>${parameter.in}${parameter.required === true ? ', required' : ''}</td>
                  <td>${typeOf(parameter.schema)}</td>
                  <td>${prose(parameter.description ?? parameter.schema?.description)}</td>
                </tr>`,
            )}
          </table>`
        : nothing
    }
    ${operation.requestBody ? html`<h4>Body</h4>${contentOf(operation.requestBody.content)}` : nothing}
    <h4>Answers</h4>
    <table>
      ${Object.entries(operation.responses).map(
        ([status, response]) =>
          html`<tr>
            <td>${status}</td>
            <td>${prose(response.description)}</td>
            <td>${isProblem(response) ? nothing : contentOf(response.content)}</td>
          </tr>`,
      )}
    </table>
  </section>`;

const style = `body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c;background:#fff}
code{font:13px ui-monospace,monospace}h3{margin:2rem 0 .3rem;border-top:1px solid #ddd;padding-top:1rem}h4{margin:.6rem 0 .2rem}
table{border-collapse:collapse}td{vertical-align:top;padding:.15rem .8rem .15rem 0}ul{margin:0;padding-left:1.2rem}nav{columns:3 16rem}nav h4{break-after:avoid}nav li{break-inside:avoid}.access{color:#555}
@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}a{color:#8ab4f8}h3{border-color:#444}.access{color:#999}}`;

export const docsPage = (document: Document): Html => {
  const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, operation })),
  );
  const tags = [...new Set(operations.map(({ operation }) => operation.tags?.[0] ?? ''))];
  const inTag = (tag: string) => operations.filter(({ operation }) => (operation.tags?.[0] ?? '') === tag);
  return html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width" />
        <title>${document.info.title}</title>
        <style>
          ${raw(style)}
        </style>
      </head>
      <body>
        <h1>${document.info.title} ${document.info.version}</h1>
        <p>${prose(document.info.description)} <a href="openapi.json">openapi.json</a></p>
        <p>
          Each operation says the least role that may use it. Answers from 400 on are
          <code>application/problem+json</code>: <a href="#schema-Problem">Problem</a>.
        </p>
        <nav>
          ${tags.map(
            (tag) =>
              html`<h4>${tag}</h4>
                <ul>
                  ${inTag(tag).map(
                    ({ operation }) =>
                      html`<li><a href="#${operation.operationId}">${prose(operation.summary)}</a></li>`,
                  )}
                </ul>`,
          )}
        </nav>
        ${tags.map(
          (tag) =>
            html`<h2>${tag}</h2>
              ${inTag(tag).map(({ path, method, operation }) => operationOf(path, method, operation))}`,
        )}
        <h2>Shapes</h2>
        ${Object.entries(document.components?.schemas ?? {}).map(
          ([name, schema]) =>
            html`<section id="schema-${name}">
              <h3>${name}</h3>
              <p>${prose(schema.description)}</p>
              ${typeOf(schema)}
            </section>`,
        )}
      </body>
    </html>`;
};
