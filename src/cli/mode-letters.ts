/** Permission bits as `ls -l` shows them: "rw-r--r--". */
export const modeLetters = (mode: number): string => {
  const letters = [...'rwxrwxrwx'].map((letter, i) => ((mode & (0o400 >> i)) === 0 ? '-' : letter));
  const mark = (bit: number, at: number, on: string): void => {
    if ((mode & bit) !== 0) letters[at] = letters[at] === '-' ? on.toUpperCase() : on;
  };
  mark(0o4000, 2, 's');
  mark(0o2000, 5, 's');
  mark(0o1000, 8, 't');
  return letters.join('');
};
