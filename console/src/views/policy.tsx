import type { JSX } from 'preact';
import { useState } from 'preact/hooks';
import { ApiError, ask, call, type ResultOf, type Vm } from '../api.ts';
import { may } from '../session.ts';
import { useAsked } from '../ui/asked.ts';
import { Failure, Loading } from '../ui/states.tsx';
import { complain } from '../ui/toasts.tsx';
import { VmPage } from '../ui/vm-page.tsx';
import type { ViewProps } from './index.ts';

type Preview = ResultOf<'previewPolicy'>;
type Seen = ResultOf<'viewPolicy'>['entries'][number];
type Mistake = NonNullable<NonNullable<ApiError['problem']>['problems']>[number];

export default function PolicyView({ params }: ViewProps): JSX.Element {
  return <VmPage name={params['name']!}>{(vm) => <Policy key={vm.id} vm={vm} />}</VmPage>;
}

const Policy = ({ vm }: { readonly vm: Vm }): JSX.Element => {
  const { name } = vm;
  const saved = useAsked([name], async (signal) => {
    const answer = await ask('getPolicy', { params: { name }, signal });
    return { text: await answer.text(), tag: answer.headers.get('etag')! };
  });
  const [edited, setEdited] = useState<string>();
  const [mistakes, setMistakes] = useState<readonly Mistake[]>([]);
  const [conflict, setConflict] = useState(false);
  const [preview, setPreview] = useState<Preview>();
  if (saved.error !== undefined)
    return <Failure title="The policy could not be read" detail={saved.error.message} again={saved.again} />;
  if (saved.value === undefined) return <Loading what="the policy" />;
  const text = edited ?? saved.value.text;
  const isEdited = text !== saved.value.text;

  const change = (next: string): void => {
    setEdited(next);
    setMistakes([]);
    setPreview(undefined);
  };
  const told = (what: string, error: unknown): void => {
    if (error instanceof ApiError && error.code === 'PRECONDITION_FAILED') setConflict(true);
    else if (error instanceof ApiError && error.problem?.problems) setMistakes(error.problem.problems);
    else complain(what, error);
  };
  const look = async (): Promise<void> => {
    try {
      setPreview(await call('previewPolicy', { params: { name }, body: text }));
      setMistakes([]);
    } catch (error) {
      told('The policy could not be looked at', error);
    }
  };
  const save = async (): Promise<void> => {
    try {
      await call('setPolicy', { params: { name }, body: text, headers: { 'if-match': saved.value!.tag } });
      setEdited(undefined);
      setPreview(undefined);
      setMistakes([]);
      saved.again();
    } catch (error) {
      told('The policy was not saved', error);
    }
  };
  const takeTheirs = (): void => {
    setConflict(false);
    change(saved.value!.text);
    setEdited(undefined);
    saved.again();
  };
  return (
    <div class="columns scrolls">
      <section class="card" aria-labelledby="rules">
        <h2 id="rules">Rules</h2>
        <label class="field">
          <span class="hidden">Policy as YAML</span>
          <textarea
            rows={16}
            spellcheck={false}
            value={text}
            readOnly={!may('operator')}
            aria-invalid={mistakes.length > 0}
            aria-describedby="mistakes"
            onInput={({ currentTarget }) => change(currentTarget.value)}
          />
        </label>
        <ul id="mistakes" class="rows bad-text" aria-live="polite">
          {mistakes.map(({ line, column, what, fix }) => (
            <li key={`${line}:${column}:${what}`}>
              Line {line}: {what}
              {fix !== '' && `; ${fix}`}
            </li>
          ))}
        </ul>
        {conflict && (
          <div class="note" role="alert">
            <p>Somebody else changed the policy meanwhile. Yours was not saved.</p>
            <button type="button" onClick={takeTheirs}>
              Show what is there now
            </button>
          </div>
        )}
        {may('operator') && (
          <div class="actions">
            <button type="button" disabled={!isEdited} onClick={() => change(saved.value!.text)}>
              Undo
            </button>
            <button type="button" disabled={!isEdited} onClick={() => void look()}>
              What would it change?
            </button>
            <button type="button" class="primary" disabled={!isEdited} onClick={() => void save()}>
              Save
            </button>
          </div>
        )}
        {preview && <Difference preview={preview} />}
      </section>
      <Caller name={name} text={isEdited ? text : undefined} />
    </div>
  );
};

type Class = Preview['callers'][number];

const classWord = ({ uids, gids, programs, units, names }: Class): string => {
  const named = names.length === 0 ? '' : ` (${names.join(', ')})`;
  const parts = [
    uids === undefined ? 'everybody else' : `uid ${uids.join(', ')}`,
    gids === undefined || gids.length === 0 ? '' : `in group ${gids.join(', ')}`,
    programs === undefined || programs.length === 0 ? '' : `running ${programs.join(', ')}`,
    units === undefined || units.length === 0 ? '' : `in ${units.join(', ')}`,
  ];
  return `${parts.filter(Boolean).join(' ')}${named}`;
};

const Difference = ({ preview }: { readonly preview: Preview }): JSX.Element => (
  <section aria-labelledby="difference">
    <h2 id="difference">What it would change</h2>
    {preview.entries.length === 0 ? (
      <p class="count">Nobody would gain or lose anything.</p>
    ) : (
      <ul class="rows">
        {preview.entries.map(({ path, changes }) => (
          <li key={path}>
            <code>{path}</code>
            <ul>
              {changes.map(({ callers, gained, lost }, i) => (
                <li key={String(i)}>
                  {callers.map((index) => classWord(preview.callers[index]!)).join('; ')}
                  {gained.length > 0 && <span class="good-text"> gains {gained.join(', ')}</span>}
                  {lost.length > 0 && <span class="bad-text"> loses {lost.join(', ')}</span>}
                </li>
              ))}
            </ul>
          </li>
        ))}
      </ul>
    )}
    {preview.more && <p class="count">And more paths than are shown.</p>}
  </section>
);

const Caller = ({ name, text }: { readonly name: string; readonly text: string | undefined }): JSX.Element => {
  const [shown, setShown] = useState<{
    readonly entries: readonly Seen[];
    readonly more: boolean;
    readonly isDraft: boolean;
  }>();
  const [problem, setProblem] = useState('');
  const look = async (form: HTMLFormElement): Promise<void> => {
    const data = new FormData(form);
    const of = (field: string): string | undefined => String(data.get(field) ?? '').trim() || undefined;
    const input = { params: { name }, query: { uid: of('uid') ?? '0', program: of('program'), unit: of('unit') } };
    try {
      const { entries, more } =
        text === undefined ? await call('viewPolicy', input) : await call('previewView', { ...input, body: text });
      setShown({ entries, more, isDraft: text !== undefined });
      setProblem('');
    } catch (error) {
      setProblem((error as Error).message);
    }
  };
  return (
    <section class="card" aria-labelledby="caller">
      <h2 id="caller">What would they see?</h2>
      <form
        class="tools"
        onSubmit={(event) => {
          event.preventDefault();
          void look(event.currentTarget);
        }}
      >
        <label class="inline-field">
          uid
          <input name="uid" type="number" min={0} required defaultValue="0" />
        </label>
        <label class="inline-field">
          Program
          <input name="program" placeholder="/usr/bin/app" spellcheck={false} />
        </label>
        <label class="inline-field">
          Unit
          <input name="unit" placeholder="app.service" spellcheck={false} />
        </label>
        <button type="submit">Look</button>
      </form>
      {problem !== '' && (
        <p class="bad-text" role="alert">
          {problem}
        </p>
      )}
      {shown && (
        <>
          <p class="count">
            {shown.isDraft ? 'Under the rules as they are edited, not saved.' : 'Under the rules as they are saved.'}
          </p>
          <ul class="rows seen" aria-label="What this caller may do">
            {shown.entries.map(({ path, may: rights, read, stoppedAt }) => (
              <li key={path}>
                <code>{path}</code>{' '}
                <span class={rights.includes('read') ? 'good-text' : 'bad-text'}>
                  {rights.length === 0 ? 'nothing' : rights.join(', ')}
                </span>{' '}
                <span class="count">
                  {stoppedAt === undefined ? read.because : `may not pass ${stoppedAt}`}
                  {read.rule !== undefined && ` by ${read.rule}`}
                </span>
              </li>
            ))}
          </ul>
          {shown.more && <p class="count">And more than are shown.</p>}
        </>
      )}
    </section>
  );
};
