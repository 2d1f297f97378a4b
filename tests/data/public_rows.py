"""Invented rows, a few for each layout, with the columns and the marks that the public sets have."""

THOUGHT = (
    "<|begin_of_thought|>\n\nSix and one.\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nIt is $\\boxed{7}$.\n\n<|end_of_solution|>"
)
OURS = "<think>\nSix and one.\n</think>\n\nIt is $\\boxed{7}$."
CONVERSATION = [{"from": "user", "value": "What is 6 + 1?"}, {"from": "assistant", "value": THOUGHT}]
QUIZ = 'Two people: Ann and Bob. Ann says, "Bob is a knave". Who is a knight and who is a knave?'
SAID = "(1) Ann is a knight\n(2) Bob is a knave"

ROWS = {
    "verl": {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": "What is 6 + 1?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "7"},
        "extra_info": {"split": "train", "index": 0, "answer": "6 + 1 = 7"},
    },
    "gsm8k": {
        "question": "Ann has 6 eggs and buys 1. How many has she?",
        "answer": "She has 6+1=<<6+1=7>>7 eggs.\n#### 7",
    },
    "math": {
        "problem": "What is $6 + 1$?",
        "level": "Level 1",
        "type": "Prealgebra",
        "solution": "Six and one are $\\boxed{7}$.",
    },
    "deepscaler": {"problem": "What is $6 + 1$?", "answer": "7", "solution": "Six and one."},
    "openr1_math": {
        "problem": "What is $6 + 1$?",
        "solution": "Count.",
        "answer": "7",
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": "a1",
        "is_reasoning_complete": [False, True, True],
        "generations": [
            "<think>\nSix",
            "<think>\nEight.\n</think>\n\n8",
            "<think>\nSix and one.\n</think>\n\nIt is $\\boxed{7}$.",
        ],
        "correctness_math_verify": [True, False, True],
        "correctness_llama": None,
        "finish_reasons": None,
        "correctness_count": 2,
        "messages": [{"role": "user", "content": "What is $6 + 1$?"}],
    },
    "openthoughts": {"system": "Mark your thoughts.", "conversations": CONVERSATION},
    "bespoke_stratos": {"system": "Mark your thoughts.", "conversations": CONVERSATION},
    "openthoughts_metadata": {
        "problem": "What is 6 + 1?",
        "deepseek_reasoning": "Six and one.",
        "deepseek_solution": "It is $\\boxed{7}$.",
        "ground_truth_solution": "Count: $\\boxed{7}$",
        "domain": "math",
        "source": "numina",
        "test_cases": None,
        "starter_code": None,
    },
    "dolphin_r1": {
        "messages": [{"role": "system", "content": "Help."}, {"role": "user", "content": "What is 6 + 1?"}],
        "reasoning": "Six and one.",
        "answer": "It is $\\boxed{7}$.",
        "model": "deepseek",
    },
    "limo": {"question": "What is 6 + 1?", "solution": "Six and one.", "answer": "7"},
    "countdown_tasks": {"target": 7, "nums": [6, 1, 3]},
    "knights_and_knaves": {
        "quiz": QUIZ,
        "names": ["Ann", "Bob"],
        "solution": [True, False],
        "solution_text": "Ann is a knight, and Bob is a knave.",
        "solution_text_format": SAID,
        "statements": "(('lying', 1),)",
        "cot_head": "Try each.",
        "cot_repeat_steps": ["Ann tells the truth: fine."],
        "cot_foot": "It fits.",
        "prompt": [{"role": "user", "content": f"<|im_start|>user\n{QUIZ}<|im_end|>\n"}],
    },
    "question_answer": {"question": "Capital of Peru?", "answer": "Lima"},
    "problem_answer": {"problem": "What is $6 + 1$?", "answer": "7", "difficulty": "3/8"},
    "messages": {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
        "source": "chat",
    },
}
