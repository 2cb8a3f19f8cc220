/** What is done with the text of a spec, by whichever thread does it. */
import { type ExportedTree, exportYaml } from './export-yaml.ts';
import { type LoadedPolicy, type LoadedSpec, parsePolicy, parseSpec } from './spec-file.ts';

export type SpecTask =
  | { readonly kind: 'spec'; readonly text: string }
  | { readonly kind: 'policy'; readonly text: string }
  | { readonly kind: 'export'; readonly tree: ExportedTree };

export interface SpecResults {
  readonly spec: LoadedSpec;
  readonly policy: LoadedPolicy;
  readonly export: string;
}

/** No `file:` values: what comes over the API names no files. */
export const doSpecTask = (task: SpecTask): SpecResults[SpecTask['kind']] => {
  switch (task.kind) {
    case 'spec':
      return parseSpec(task.text, 'spec', 'refused');
    case 'policy':
      return parsePolicy(task.text, 'policy');
    case 'export':
      return exportYaml(task.tree);
  }
};
